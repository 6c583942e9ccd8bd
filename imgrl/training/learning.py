"""The part of a round in which rewards learn, and the signs that a reward and its policy have parted ways."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch.nn.functional as F

from imgrl.evaluation.diversity import group_distances
from imgrl.training.distributed import World
from imgrl.training.rollout import Rollout

if TYPE_CHECKING:
    from imgrl.rewards import RewardSet

__all__ = ["Alarms", "learn_from"]

_SIDE = 64  # pixels at which images are compared; finer detail is noise to a collapse


def learn_from(rollout: Rollout, rewards: RewardSet, world: World, *, waited: bool) -> dict[str, float]:
    """Let rewards learn from a round that they have scored; returns what to log, the same on every process.

    Nothing happens, and nothing is logged, in a run whose rewards do not learn.
    """
    if not rewards.learners:
        return {}
    samples = rollout.samples
    learned = rewards.learners.learn(samples.images, samples.prompts, peers=world)
    row = {f"reward/{name}/{key}": value for name, found in learned.items() for key, value in found.items()}
    side = min(_SIDE, *samples.images.shape[-2:])
    apart = group_distances(F.adaptive_avg_pool2d(samples.images, side), samples.group)
    total, count = world.add_numbers([math.fsum(apart), float(len(apart))])
    return row | {"group_diversity": total / max(count, 1), "policy_waited": float(waited)}


class Alarms:
    """Watches the rounds of a run whose rewards learn; each alarm sounds once, after it has held for a while.

    Args:
        patience: rounds in a row that a sign must hold.
        least_diversity: share of the first rounds' diversity within groups below which images have collapsed.
    """

    def __init__(self, *, patience: int = 10, least_diversity: float = 0.5) -> None:
        self.patience, self.least_diversity = patience, least_diversity
        self._held: dict[str, int] = {}
        self._start: float | None = None
        self._rounds = self._waited = 0

    def replay(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Take in rows of an earlier part of the run without sounding."""
        for row in rows:
            self(row)

    def __call__(self, row: Mapping[str, float]) -> list[str]:
        """What to tell the user after the round with these metrics."""
        if "group_diversity" not in row:
            return []
        self._rounds += 1
        self._waited += row["policy_waited"] > 0
        if self._start is None:
            self._start = row["group_diversity"]
        return [story for name, (holds, story) in self._signs(row).items() if self._sounds(name, holds)]

    def _sounds(self, name: str, holds: bool) -> bool:
        self._held[name] = self._held.get(name, 0) + 1 if holds else 0
        return self._held[name] == self.patience

    def _signs(self, row: Mapping[str, float]) -> dict[str, tuple[bool, str]]:
        """Name -> whether it holds now, and its sentence."""
        signs = {}
        for key, value in row.items():
            if not key.endswith("/accuracy") or row["policy_waited"]:
                continue
            name = key.split("/")[1]
            signs[f"{name}/sure"] = (
                value > 0.99,
                f"reward {name!r} tells every image from the references (accuracy {value:.3f}): its scores then say "
                "little about which image of a group is better; lower its learning rate or its steps a round",
            )
            signs[f"{name}/blind"] = (
                abs(value - 0.5) < 0.02,
                f"reward {name!r} no longer tells images from references (accuracy {value:.3f}): the policy has "
                "arrived, or the discriminator is too weak to go on",
            )
        start = self._start or 0.0
        signs["diversity"] = (
            row["group_diversity"] < self.least_diversity * start,
            f"the images of a prompt differ by {row['group_diversity']:.3f}, less than {self.least_diversity:.0%} of "
            f"the {start:.3f} at the start: the policy is collapsing; raise the anchor's weight or stop earlier",
        )
        signs["spread"] = (
            row.get("groups/zero_variance", 0.0) > 0.5,
            "more than half of the groups score alike, so most images teach nothing",
        )
        signs["waiting"] = (
            self._waited > 0.5 * self._rounds and self._rounds > 2 * self.patience,
            f"the policy waited for its reward in {self._waited} of {self._rounds} rounds; shorten the warm-up",
        )
        return signs
