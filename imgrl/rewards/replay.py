"""Features of images from earlier rounds, so that a discriminator does not forget what the policy used to draw."""

from __future__ import annotations

from typing import Any

import torch

from imgrl.rewards.features import Features

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
        """Take images in; of more than fit, a random part."""
        new = Features(*(part.detach().clone() for part in features))
        if self._kept is None:
            self._kept = Features(*(part[: self.capacity] for part in new))
            return
        free = self.capacity - len(self)
        if free:
            self._kept = Features(
                *(torch.cat([old, part[:free]]) for old, part in zip(self._kept, new, strict=True))
            )
        rest = Features(*(part[free:] for part in new))
        count = min(len(rest.overall), self.capacity)
        if count:
            places = torch.randperm(self.capacity, generator=generator)[:count]
            for old, part in zip(self._kept, rest, strict=True):
                old[places] = part[:count]

    def draw(self, count: int, generator: torch.Generator) -> Features:
        """``count`` images, with repetition."""
        if self._kept is None:
            raise ValueError("There is nothing to draw from yet.")
        rows = torch.randint(len(self), (count,), generator=generator)
        return Features(*(part[rows] for part in self._kept))

    def state_dict(self) -> dict[str, Any]:
        """The images held."""
        return {} if self._kept is None else {"overall": self._kept.overall, "patches": self._kept.patches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hold what was saved."""
        self._kept = Features(state["overall"], state["patches"]) if state else None
