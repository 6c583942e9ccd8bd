"""Features of images from earlier rounds, so that a discriminator does not forget what the policy used to draw.

They lie in main memory, wherever the network computes.
"""

from __future__ import annotations

from typing import Any

import torch

from imgrl.rewards.features import Features
from imgrl.rewards.learning import Peers

__all__ = ["Replay"]


class Replay:
    """A bounded sample: once full, new images take the places of random old ones."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"Expected a capacity of at least 1, got {capacity}.")
        self.capacity = capacity
        self._kept: Features | None = None

    def __len__(self) -> int:
        """Images held."""
        return 0 if self._kept is None else len(self._kept.overall)

    def add(self, features: Features, generator: torch.Generator) -> None:
        """Take images in, in random order: first into free places, then in place of random others."""
        order = torch.randperm(len(features.overall), generator=generator)
        new = Features(*(part.detach().cpu()[order] for part in features))
        free = self.capacity - len(self)
        if self._kept is None:
            self._kept = Features(*(part[:free] for part in new))
        elif free:
            both = zip(self._kept, new, strict=True)
            self._kept = Features(*(torch.cat([old, part[:free]]) for old, part in both))
        rest = Features(*(part[free : free + self.capacity] for part in new))
        places = torch.randperm(self.capacity, generator=generator)[: len(rest.overall)]
        for old, part in zip(self._kept, rest, strict=True):
            old[places] = part

    def draw(self, count: int, generator: torch.Generator) -> Features:
        """``count`` images, with repetition."""
        if self._kept is None:
            raise ValueError("There is nothing to draw from yet.")
        rows = torch.randint(len(self), (count,), generator=generator)
        return Features(*(part[rows] for part in self._kept))

    def state_dict(self, peers: Peers) -> dict[str, Any]:
        """The images held by all processes."""
        if self._kept is None:
            return {}
        return {k: peers.gather(v.to(peers.device)).cpu() for k, v in self._kept._asdict().items()}

    def load_state_dict(self, state: dict[str, Any], peers: Peers) -> None:
        """Hold this process's share of what was saved; of more than it can hold, as after more processes, the first."""
        parts = {k: v.tensor_split(peers.size)[peers.rank][: self.capacity].clone() for k, v in state.items()}
        self._kept = Features(**parts) if parts else None
