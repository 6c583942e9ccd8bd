"""The fault log of a run: which reward failed in which round, on how many images, and why."""

from __future__ import annotations

from imgrl.recipe import Recipe
from imgrl.rewards.combine import RewardSet
from imgrl.training.rollout import Rollout
from imgrl.training.tracking import Metrics

__all__ = ["note_faults"]


def note_faults(
    rollout: Rollout, rewards: RewardSet, metrics: Metrics, *, round: int, recipe: Recipe
) -> list[str]:
    """Write a row of ``faults.jsonl`` for each reward that failed in a round, and return a sentence about each.

    Images on which a reward failed are masked, so they cost their groups some members and nobody a zero. A round in
    which too many failed ends the run instead, with a sentence of its own. All processes call this.

    Args:
        rollout: the round.
        rewards: those that were asked, which know their last failure on this process.
        metrics: the run's log.
        round: counted from 1.
        recipe: says of how many images.
    """
    images, sentences = recipe.batch.images, []
    for name, missed in rollout.failures.items():
        if not missed:
            continue
        here = str(rewards.last_failure[name]) if rollout.scores.failures[name] else None
        told = [why for why in metrics.world.gather_objects([here]) if why is not None]
        metrics.fault(round, {"reward": name, "failed": missed, "images": images, "last": told[-1]})
        sentences.append(
            f"round {round}: reward {name!r} failed on {missed} of {images} images, which are masked ({told[-1]})"
        )
    return sentences
