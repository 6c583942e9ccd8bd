"""Features of a round's images, which are scored first, in one part or several, and learned from as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from imgrl.rewards.features import Features

__all__ = ["RoundMemory"]


class RoundMemory:
    """The images last scored and their features, in that order, so that a backbone sees each image once."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Features]] = []

    def add(self, images: Tensor, features: Features) -> None:
        """Keep the features of images [n, 3, H, W]."""
        self._parts.append((images, features))

    def find(self, images: Tensor) -> Features | None:
        """Features of images [n, 3, H, W] if these are the last n kept, in this order; None otherwise."""
        first, count = len(self._parts), 0
        while first and count < len(images):
            first -= 1
            count += len(self._parts[first][0])
        kept = self._parts[first:]  # what lies before is of no part of this round, such as a probe
        if not kept or count != len(images):
            return None
        parts = images.split([len(part) for part, _ in kept])
        if not all(torch.equal(part, seen) for part, (seen, _) in zip(parts, kept, strict=True)):
            return None
        if len(kept) == 1:
            return kept[0][1]
        return Features(*(torch.cat(kind) for kind in zip(*(found for _, found in kept), strict=True)))

    def clear(self) -> None:
        """Forget all."""
        self._parts.clear()
