"""The fault log of a run: which reward failed in which round, on how many samples, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgrl.rewards.calling import Failure
from imgrl.training.tracking import Metrics

if TYPE_CHECKING:  # language models know this file, too
    from imgrl.rewards.combine import RewardSet
    from imgrl.training.rollout import Rollout

__all__ = ["Fault", "faults_of", "note_faults"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A reward that failed on some samples of a round."""

    reward: str
    missed: int
    """Samples without a score, on all processes together."""
    why: Failure | None
    """Of this process; None where it did not fail here."""


def faults_of(rollout: Rollout, rewards: RewardSet) -> list[Fault]:
    """The rewards that failed on images of a round."""
    return [
        Fault(
            reward=name,
            missed=missed,
            why=rewards.last_failure[name] if rollout.scores.failures[name] else None,
        )
        for name, missed in rollout.failures.items()
        if missed
    ]


def note_faults(
    faults: Iterable[Fault], metrics: Metrics, *, round: int, samples: int, kind: str, unit: str = "round"
) -> list[str]:
    """Write a row of ``faults.jsonl`` for each fault, and return a sentence about each.

    Samples on which a reward failed are masked, so they cost their groups some members and nobody a zero. A round in
    which too many failed ends the run instead, with a sentence of its own. All processes call this.

    Args:
        faults: the same rewards on every process.
        metrics: the run's log.
        round: counted from 1.
        samples: that were scored, by all processes.
        kind: what they are: ``images`` or ``completions``.
        unit: what ``round`` counts.
    """
    sentences = []
    for fault in faults:
        here = None if fault.why is None else str(fault.why)
        told = [why for why in metrics.world.gather_objects([here]) if why is not None]
        story = {"reward": fault.reward, "failed": fault.missed, kind: samples, "last": told[-1]}
        metrics.fault(round, story)
        sentences.append(
            f"{unit} {round}: reward {fault.reward!r} failed on {fault.missed} of {samples} {kind}, which are masked "
            f"({told[-1]})"
        )
    return sentences
