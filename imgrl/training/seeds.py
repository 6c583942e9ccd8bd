"""Every random number of a run from a key of whole numbers: nothing depends on batch, rank or what came before."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["IMAGE", "IMITATION", "NOISE", "PICTURES", "TIMES", "WINDOW", "derive", "generator", "normal"]

# The first number of a key says what it is for.
IMAGE, NOISE, TIMES, WINDOW, IMITATION, PICTURES = range(1, 7)


def derive(*key: int) -> int:
    """A 63-bit seed from a key such as ``(run seed, IMAGE, round, row)``."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*key: int) -> torch.Generator:
    """A CPU generator of its own for a key."""
    return torch.Generator().manual_seed(derive(*key))


def normal(shape: tuple[int, ...], keys: list[tuple[int, ...]]) -> Tensor:
    """Standard normal float32 [len(keys), *shape], each row from its own key."""
    return torch.stack([torch.randn(shape, generator=generator(*key)) for key in keys])
