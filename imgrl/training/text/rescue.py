"""A checkpoint of the last whole step, where an error ends a language run: nothing that was trained is lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgrl.errors import BudgetError
from imgrl.objectives.text.base import passes_of
from imgrl.training.distributed import World
from imgrl.training.text.checkpoints import is_whole

__all__ = ["StepState", "save_last_step"]


class StepState:
    """What a step that fails may have moved though no weight has: every generator, and TRL's count of tokens."""

    def __init__(self, state: Any) -> None:
        """Take them as they are.

        Args:
            state: transformers' state of the training.
        """
        self._tokens = state.num_input_tokens_seen
        self._random = (
            random.getstate(),
            np.random.get_state(),
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        )

    def restore(self, state: Any) -> None:
        """Put them back."""
        state.num_input_tokens_seen = self._tokens
        python, numpy, cpu, cuda = self._random
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def save_last_step(trainer: Any, last: StepState | None, error: Exception) -> Path | None:
    """Write the checkpoint that an uninterrupted run could have written after its last step, and say where.

    Nothing is written where that would not be one: before the first step, between updates on the same completions,
    after anchors have moved on for a step that was not taken, and where only one of several processes may have failed.

    Args:
        trainer: one of ours, whose weights are those of its last whole step.
        last: what it was right after that step.
        error: what ends the run.
    """
    step, alone = int(trainer.state.global_step), int(trainer.args.world_size) == 1
    if last is None or not step or step % passes_of(trainer.objective) or trainer.has_moved_on():
        return None
    if not (alone or isinstance(error, BudgetError)):
        return None
    folder, world = Path(trainer.args.output_dir) / f"checkpoint-{step}", World(trainer.accelerator)
    if world.any(world.main and is_whole(folder)):  # disks of several machines may differ
        return None
    last.restore(trainer.state)
    trainer._save_checkpoint(trainer.model, None)
    return folder
