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
    samples, spreads = rollout.samples, _spreads(rollout, rewards, world)
    learned = rewards.learners.learn(samples.images, samples.prompts, peers=world)
    row = {f"reward/{name}/{key}": value for name, found in learned.items() for key, value in found.items()}
    side = min(_SIDE, *samples.images.shape[-2:])
    apart = group_distances(F.adaptive_avg_pool2d(samples.images, side), samples.group)
    total, count = world.add_numbers([math.fsum(apart), float(len(apart))])
    return row | spreads | {"group_diversity": total / max(count, 1), "policy_waited": float(waited)}


def _spreads(rollout: Rollout, rewards: RewardSet, world: World) -> dict[str, float]:
    """How far a learning reward's scores of one prompt lie apart: mean over groups of their standard deviation.

    Logits are never quite equal, so a count of groups that score alike stays at 0 when they become so all but exactly.
    """
    group = world.gather(rollout.samples.group.to(world.device)).cpu()
    row = {}
    for name in rewards.learners.targets:  # in one order on every process
        if name not in rollout.scores.values:
            continue
        values = world.gather(rollout.scores.values[name].to(world.device)).cpu().double()
        good = ~values.isnan()
        parts = [values[good & (group == number)] for number in group.unique()]
        spreads = [float(part.std(correction=0)) for part in parts if len(part) > 1]
        if spreads:
            row[f"reward/{name}/spread"] = math.fsum(spreads) / len(spreads)
    return row


class Alarms:
    """Watches the rounds of a run whose rewards learn; each alarm sounds once, after it has held for a while.

    Args:
        patience: rounds in a row that a sign must hold.
        least_diversity: share of the first round's diversity within groups below which images have collapsed.
        least_spread: share of a reward's spread within groups, in as many first rounds that the policy trained in as
            ``patience`` says, below which it is gone.
        alternating: the policy waits in most rounds by design, which is then nothing to tell.
    """

    def __init__(
        self,
        *,
        patience: int = 10,
        least_diversity: float = 0.5,
        least_spread: float = 0.1,
        alternating: bool = False,
    ) -> None:
        self.patience, self.least_diversity, self.least_spread = patience, least_diversity, least_spread
        self.alternating = alternating
        self._held: dict[str, int] = {}
        self._spreads: dict[str, list[float]] = {}
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
        signs: dict[str, tuple[bool, str]] = {}
        for key, value in row.items():
            if key.endswith("/accuracy") and not row["policy_waited"]:
                signs |= self._of_accuracy(key.split("/")[1], value)
            if key.endswith("/spread") and not row["policy_waited"]:
                signs |= self._of_spread(key.split("/")[1], value)
        start = self._start or 0.0
        signs["diversity"] = (
            row["group_diversity"] < self.least_diversity * start,
            f"the images of a prompt differ by {row['group_diversity']:.3f}, less than {self.least_diversity:.0%} of "
            f"the {start:.3f} at the start: the policy is collapsing; raise the anchor's weight or stop earlier",
        )
        signs["alike"] = (
            row.get("groups/zero_variance", 0.0) > 0.5,
            "more than half of the groups score alike, so most images teach nothing",
        )
        signs["waiting"] = (
            not self.alternating and self._waited > 0.5 * self._rounds and self._rounds > 2 * self.patience,
            f"the policy waited for its reward in {self._waited} of {self._rounds} rounds; shorten the warm-up",
        )
        return signs

    @staticmethod
    def _of_accuracy(name: str, value: float) -> dict[str, tuple[bool, str]]:
        """Signs of a discriminator that has become too good, or of no use."""
        return {
            f"{name}/sure": (
                value > 0.99,
                f"reward {name!r} tells every image from the references (accuracy {value:.3f}): its scores then say "
                "little about which image of a group is better; lower its learning rate or its steps a round",
            ),
            f"{name}/blind": (
                abs(value - 0.5) < 0.02,
                f"reward {name!r} no longer tells images from references (accuracy {value:.3f}): the policy has "
                "arrived, or the discriminator is too weak to go on",
            ),
        }

    def _of_spread(self, name: str, value: float) -> dict[str, tuple[bool, str]]:
        """Sign of a reward that has begun to say the same of every image of a prompt."""
        first = self._spreads.setdefault(name, [])
        if len(first) < self.patience:
            first.append(value)
            return {}
        start = math.fsum(first) / len(first)
        return {
            f"{name}/spread": (
                value < self.least_spread * start,
                f"the scores that reward {name!r} gives the images of a prompt differ by {value:.3g}, less than "
                f"{self.least_spread:.0%} of the {start:.3g} at the start: what is left of them is mostly noise; "
                "lower its learning rate, or stop earlier",
            )
        }
