"""Wall time by phase of a round, so that the loop can say where it went."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["BESIDE_TRAINING", "NETWORK", "Phases"]

BESIDE_TRAINING = ("evaluation", "checkpoint", "export")
"""Phases that do not count as training time."""
NETWORK = ("rollout", "decode", "reward", "update", "learn")
"""Phases inside the network, the VAE or a reward, one that learns included; the rest of a round is overhead."""


class Phases:
    """A stopwatch with named laps; on a GPU it waits for the device at each border."""

    def __init__(self, announce: Callable[[str], None] = lambda name: None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._announce = announce

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time under ``name``."""
        self._announce(name)
        start = _now()
        try:
            yield
        finally:
            self.seconds[name] += _now() - start

    def of_training(self, seconds: float) -> dict[str, float]:
        """Seconds of the phases of a round, and as ``other`` what of the rounds' ``seconds`` none of them saw."""
        named = {name: spent for name, spent in self.seconds.items() if name not in BESIDE_TRAINING}
        return named | {"other": max(0.0, seconds - sum(named.values()))}

    def beside_training(self) -> dict[str, float]:
        """Seconds of the phases that are no part of a round."""
        return {name: spent for name, spent in self.seconds.items() if name in BESIDE_TRAINING}

    def total(self, *names: str) -> float:
        """Seconds of the named phases, or of all."""
        return sum(self.seconds[name] for name in names or list(self.seconds))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
