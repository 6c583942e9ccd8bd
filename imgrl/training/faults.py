"""The fault log of a run: which reward failed in which round, on how many images, and why."""

from __future__ import annotations

import json
from pathlib import Path

from imgrl.rewards.combine import RewardSet
from imgrl.training.distributed import World
from imgrl.types import Scores

__all__ = ["FAULTS", "note_faults"]

FAULTS = "faults.jsonl"


def note_faults(
    folder: Path, round: int, scores: Scores, rewards: RewardSet, *, images: int, world: World
) -> tuple[dict[str, float], list[str]]:
    """Failures of a round by reward, for its row of metrics, and a line about each; written to ``faults.jsonl``.

    Images on which a reward failed are masked, so they cost their groups some members and nobody a zero.

    Args:
        folder: the run folder.
        round: counted from 1.
        scores: of this process's images.
        rewards: those that gave them, which know their last failure.
        images: of the round, on all processes.
        world: the processes, all of which call this.
    """
    counts = world.add_counts(scores.failures)
    stories = []
    for name in (name for name, missed in counts.items() if missed):
        here = rewards.last_failure.get(name) if scores.failures.get(name) else None
        told = [why for why in world.gather_objects([None if here is None else str(here)]) if why]
        fault = {"round": round, "reward": name, "failed": counts[name], "images": images, "last": told[-1]}
        stories.append(
            f"round {round}: reward {name!r} failed on {counts[name]} of {images} images, which are masked "
            f"({told[-1]})"
        )
        if world.main:
            with (folder / FAULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(fault, ensure_ascii=False) + "\n")
    row = {f"reward/{name}/failed": float(missed) for name, missed in counts.items()}
    return row | {"reward/failed": float(sum(counts.values()))}, stories
