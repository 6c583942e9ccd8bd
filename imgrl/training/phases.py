"""Wall time by phase of a round, so that the loop can say where it went."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["Phases"]


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

    def total(self, *names: str) -> float:
        """Seconds of the named phases, or of all."""
        return sum(self.seconds[name] for name in names or list(self.seconds))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
