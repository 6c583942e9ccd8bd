"""The run folder: made before anything expensive, JSON written atomically."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from imgrl.errors import ConfigError

__all__ = ["holds_results", "open_folder", "read_json", "write_json"]


def open_folder(path: str | None) -> Path:
    """Create the run folder and prove that it can be written.

    Raises:
        ConfigError: if ``run.dir`` is missing or not writable.
    """
    if path is None:
        raise ConfigError("run.dir is not set: name the folder that the run should be written to.")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a name of its own: several processes may try at once
            pass
    except OSError as error:
        raise ConfigError(
            f"run.dir {folder} cannot be written ({error.strerror or error}): choose another folder."
        ) from error
    return folder


def holds_results(folder: Path) -> bool:
    """Whether a run got far enough here for another one to destroy something: a checkpoint, a summary, weights.

    A run that died before its first checkpoint left nothing to continue from, so it may be started again.
    """
    results = (folder / "summary.json", folder / "lora")
    return any((folder / "checkpoints").glob("step-*")) or any(path.exists() for path in results)


def write_json(file: Path, value: Any) -> None:
    """Write JSON beside and rename, so that a reader never sees half of it."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(value, indent=1))
    os.replace(partial, file)


def read_json(file: Path) -> Any:
    """Read what :func:`write_json` wrote."""
    return json.loads(file.read_text())
