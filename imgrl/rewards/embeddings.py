"""What the rewards with an image tower and a text tower share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imgrl.rewards.pixels import to_uint8

__all__ = ["Remembered", "chosen_device", "picture_keys"]


class Remembered:
    """The last embeddings by key: prompts come back every round, and several rewards may see the same images."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: dict[Any, Tensor] = {}

    def __call__(self, keys: Sequence[Any], embed: Callable[[list[int]], Tensor], *, batch: int) -> Tensor:
        """Embeddings [n, d] of n keys.

        Args:
            keys: one a row; equal keys have equal embeddings.
            embed: gives the embeddings of the rows with these numbers.
            batch: rows at once.
        """
        first: dict[Any, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        found = {key: self._kept[key] for key in first if key in self._kept}
        new = [key for key in first if key not in found]
        for start in range(0, len(new), batch):
            part = new[start : start + batch]
            found.update(zip(part, embed([first[key] for key in part]), strict=True))
        self._kept = dict([*self._kept.items(), *((key, found[key]) for key in new)][-self.most :])
        return torch.stack([found[key] for key in keys])


def picture_keys(images: Tensor) -> tuple[np.ndarray, list[bytes]]:
    """Images [n, 3, H, W] in [0, 1] as uint8 [n, H, W, 3], and a key of each."""
    levels = to_uint8(images)
    size = f"{levels.shape[1]}x{levels.shape[2]}".encode()
    return levels, [hashlib.blake2b(size + picture.tobytes(), digest_size=16).digest() for picture in levels]


def chosen_device(device: str | None) -> str:
    """The device asked for, or the first there is."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
