"""The run folder: made before anything expensive, JSON written atomically."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgrl.errors import ConfigError

__all__ = ["finite", "holds_results", "open_folder", "read_json", "replace", "write_json"]


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

    A run that died before its first checkpoint was whole left nothing to continue from, so it may be started again.
    """
    results = [folder / "summary.json", folder / "lora", folder / "model"]
    checkpoints = folder / "checkpoints"
    results += checkpoints.glob("step-*")  # of image runs; they get this name when they are whole
    results += checkpoints.glob("checkpoint-*/anchors.json")  # of language runs; written last
    return any(path.exists() for path in results)


def write_json(file: Path, value: Any) -> None:
    """Write JSON beside and rename, so that a reader never sees half of it."""
    replace(file, json.dumps(finite(value), indent=1))


def replace(file: Path, text: str) -> None:
    """Write beside and rename; on a full disk nothing half-written stays."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """The same nested values with null for every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(file: Path) -> Any:
    """Read what :func:`write_json` wrote."""
    return json.loads(file.read_text())
