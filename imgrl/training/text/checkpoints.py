"""The checkpoint folders of a language run: which of them are whole, how far they are, which may go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from imgrl.errors import CheckpointError, ImgrlError
from imgrl.training.run_folder import read_json

__all__ = [
    "ANCHORS",
    "FACTS",
    "facts_of",
    "is_partial",
    "is_whole",
    "newest",
    "prune",
    "readable",
    "seconds_of",
    "step_of",
]

ANCHORS = "anchors.safetensors"
FACTS = "anchors.json"
"""Written last: with it a checkpoint is whole."""
_STATE = "trainer_state.json"
_DO = "delete that folder to resume from an earlier checkpoint, or start the run again"


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
    return 0.0 if checkpoint is None else facts_of(checkpoint).get("seconds", 0.0)


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: if it cannot be read, or a file that it names is gone.
    """
    try:
        facts = read_json(checkpoint / FACTS)
        if (checkpoint / _STATE).is_file():  # the library's, which it opens without a word of its own
            read_json(checkpoint / _STATE)
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, error) from error
    missing = [name for name in facts.get("files", ()) if not (checkpoint / name).is_file()]
    if missing:
        raise CheckpointError(f"{checkpoint} lacks {', '.join(missing)}: {_DO}")
    return facts


@contextmanager
def readable(checkpoint: Path | str | None) -> Iterator[None]:
    """Say in a sentence what readers of damaged files raise.

    Raises:
        CheckpointError: naming the checkpoint.
    """
    try:
        yield
    except (ImgrlError, ImportError, torch.OutOfMemoryError, torch.distributed.DistError):
        raise  # of no file
    except Exception as error:  # readers of tensors raise what they like
        if checkpoint is None:
            raise
        raise _damaged(checkpoint, error) from error


def _damaged(checkpoint: Path | str, error: Exception) -> CheckpointError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return CheckpointError(f"{checkpoint} cannot be read ({reason}): {_DO}")


def is_whole(checkpoint: Path) -> bool:
    """Whether all of it was written."""
    return (checkpoint / _STATE).is_file() and (checkpoint / FACTS).is_file()


def is_partial(folder: Path) -> bool:
    """Whether a folder is a checkpoint whose adapter, as peft saves it, is not all that its run changes."""
    try:
        return bool(read_json(folder / FACTS).get("merge", False))
    except (OSError, ValueError):
        return False


def _whole(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(filter(is_whole, folder.glob("checkpoint-*")), key=step_of)
