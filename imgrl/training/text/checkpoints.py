"""The checkpoint folders of a language run: which of them are whole, how far they are, which may go."""

from __future__ import annotations

import shutil
from pathlib import Path

from imgrl.errors import CheckpointError
from imgrl.training.run_folder import read_json

__all__ = ["ANCHORS", "FACTS", "is_whole", "newest", "prune", "seconds_of", "step_of"]

ANCHORS = "anchors.safetensors"
FACTS = "anchors.json"
"""Written last: with it a checkpoint is whole."""


def newest(run: Path) -> Path:
    """The newest whole checkpoint of a run.

    Raises:
        CheckpointError: if there is none.
    """
    found = _whole(run / "checkpoints")
    if not found:
        raise CheckpointError(f"{run} has no whole checkpoint to resume from; start the run again.")
    return found[-1]


def prune(folder: Path, keep: int) -> None:
    """Delete all checkpoints in a folder but the newest whole ones."""
    stay = _whole(folder)[-keep:]
    for path in set(folder.glob("checkpoint-*")) - set(stay):
        (path / FACTS).unlink(missing_ok=True)  # first, so that half a checkpoint never looks whole
        shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The optimiser steps done."""
    return int(checkpoint.name.rpartition("-")[2])


def seconds_of(checkpoint: Path | None) -> float:
    """How long a run had trained; 0 where an earlier version did not say."""
    return 0.0 if checkpoint is None else read_json(checkpoint / FACTS).get("seconds", 0.0)


def is_whole(checkpoint: Path) -> bool:
    """Whether all of it was written."""
    return (checkpoint / "trainer_state.json").is_file() and (checkpoint / FACTS).is_file()


def _whole(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(filter(is_whole, folder.glob("checkpoint-*")), key=step_of)
