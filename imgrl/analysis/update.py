"""Which stored weights an update changed, and where the largest and the smallest of a matrix lie.

Weights count as they are stored in bfloat16. Its magnitudes take 2^15 values, "levels" below, so that quantiles and
bins of |W| come out of a histogram of levels, exactly and without sorting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LEVELS", "Threshold", "bins_of_levels", "changed", "levels", "low_level", "stored", "unchanged"]

LEVELS = 1 << 15
"""Magnitudes that bfloat16 can hold, in ascending order of value."""
_COARSE, _FINE = 1 << 16, 1 << 15  # halves of a positive float32's 31 bits


def stored(weights: Tensor) -> Tensor:
    """Weights as a bfloat16 checkpoint holds them."""
    return weights.to(torch.bfloat16)


def unchanged(before: Tensor, after: Tensor, eta: float = 1e-3) -> Tensor:
    """The test of 2511.08567: |w1 - w0| <= eta max(|w0|, |w1|), of one shape, elementwise.

    Neighbours in bfloat16 differ by at least 2^-8 of their size, hence on stored weights with eta = 1e-3 this is
    equality. Two zeros are unchanged whatever their signs.
    """
    one, other = before.float(), after.float()
    return (other - one).abs() <= eta * torch.maximum(one.abs(), other.abs())


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Whether stored weights differ: the complement of :func:`unchanged` in bfloat16, at a fraction of its cost."""
    return stored(before) != stored(after)


def levels(weights: Tensor) -> Tensor:
    """Rank of |w| among bfloat16's magnitudes, int16 in [0, LEVELS)."""
    return stored(weights).contiguous().view(torch.int16) & (LEVELS - 1)


def low_level(counts: Tensor, alpha: float) -> int:
    """The level up to which the smallest alpha of the weights lie, ties included.

    Args:
        counts: weights a level [LEVELS].
        alpha: fraction in (0, 1].
    """
    below = counts.cumsum(0).double()
    return int(torch.searchsorted(below, alpha * below[-1]))


def bins_of_levels(counts: Tensor, bins: int) -> Tensor:
    """Sort levels into bins of about equal numbers of weights; weights of one level share a bin.

    Args:
        counts: weights a level [LEVELS].
        bins: how many quantiles.

    Returns:
        The bin of each level [LEVELS], int64.
    """
    middle = counts.cumsum(0).double() - counts / 2
    return (middle * bins / counts.sum()).long().clamp(0, bins - 1)


@dataclass(frozen=True)
class Threshold:
    """The value that the largest of many numbers reach, found in two passes over them and without sorting."""

    blocks: Callable[[], Iterable[Tensor]]
    """Yields the numbers, all >= 0 and float32, the same ones each time it is called."""

    def largest(self, count: int) -> float:
        """The value of the ``count``-th largest number, exactly; infinity for a count of zero."""
        if count < 1:
            return float("inf")
        coarse = torch.zeros(_COARSE, dtype=torch.int64)
        for block in self.blocks():
            coarse += torch.bincount(_bits(block) >> 15, minlength=_COARSE)
        high = _reaches(coarse, count)
        fine = torch.zeros(_FINE, dtype=torch.int64)
        for block in self.blocks():
            bits = _bits(block)
            fine += torch.bincount(bits[bits >> 15 == high] & (_FINE - 1), minlength=_FINE)
        low = _reaches(fine, count - int(coarse[high + 1 :].sum()))
        return float(torch.tensor(high << 15 | low, dtype=torch.int32).view(torch.float32))


def _bits(block: Tensor) -> Tensor:
    return block.flatten().view(torch.int32)


def _reaches(counts: Tensor, count: int) -> int:
    """The greatest index from which on there are at least ``count``."""
    above = counts.flip(0).cumsum(0)
    return len(counts) - 1 - int(torch.searchsorted(above, count))
