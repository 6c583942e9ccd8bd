"""When a discriminator learns, and when the policy waits for it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OFFICIAL", "Schedule"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the discriminator learns, and when the policy waits for it."""

    steps: int = 8
    """Optimiser steps of the discriminator on each rollout."""
    warmup: int = 5
    """Rounds at the start in which only the discriminator learns."""
    enough: float = 0.95
    """Balanced accuracy above which it rests for a round, so that the policy can catch up."""
    gate: bool = False
    """Learn only in rounds whose images outscore the references (eq. 7, for preference rewards)."""
    every: int = 1
    """The policy trains in every so many-th round and the discriminator in the others; 1 is both in all."""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.steps < 1 or self.warmup < 0 or self.every < 1:
            raise ValueError(
                f"Expected steps >= 1, warmup >= 0, every >= 1, got {self.steps}, {self.warmup}, {self.every}."
            )
        if not 0.5 < self.enough <= 1:
            raise ValueError(f"Expected enough, an accuracy, in (0.5, 1], got {self.enough}.")

    def trains(self, round: int) -> bool:
        """Whether the policy trains in a round, counted from 0."""
        return round >= self.warmup and (round + 1) % self.every == 0

    def learns(self, round: int, measured: float, *, outscored: bool) -> bool:
        """Whether the discriminator learns from a round."""
        if round < self.warmup:
            return True
        if self.every > 1 and self.trains(round):
            return False
        return measured <= self.enough and (outscored or not self.gate)


OFFICIAL = Schedule(steps=1, warmup=0, enough=1.0, every=10)
"""The released code's: nine rounds of one step for the discriminator, then one for the policy."""
