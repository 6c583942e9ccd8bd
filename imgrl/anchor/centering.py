"""Statistics inside a prompt's group, exact wherever its rows live.

Centring removes whatever depends on the prompt alone, the partition function first of all, so it must be done
over whole groups. ``group`` is an integer per row, and ``gather`` makes the statistics exact when the rows of
a group live on several processes; on one process it is the identity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imgrl.flow.conventions import full_precision

__all__ = ["Gather", "center", "group_mean", "group_softmax", "identity"]

Gather = Callable[[Tensor], Tensor]
"""Concatenates the detached rows of every process along the first axis, in the same order on each."""


def identity(rows: Tensor) -> Tensor:
    """The gather of a single process."""
    return rows


def group_mean(
    x: Float[Tensor, " n"],
    group: Int[Tensor, " n"],
    *,
    weights: Float[Tensor, " n"] | None = None,
    gather: Gather = identity,
) -> Float[Tensor, " n"]:
    """Each row's group mean, without gradient; ``weights`` must sum to 1 inside each group."""
    if not len(x) == len(group) == (len(group) if weights is None else len(weights)):
        raise ValueError(
            f"Expected one group number per row, got {len(x)} rows and {len(group)} group numbers."
        )
    values = gather((x if weights is None else weights * x).detach())
    same = _same_group(group, gather)
    total = torch.where(same, values, 0.0).sum(1)
    return total / same.sum(1) if weights is None else total


def _same_group(group: Tensor, gather: Gather) -> Tensor:
    """Bool [n, rows everywhere]; a masked sum over it has a fixed order, which scattered adds have not."""
    return group[:, None] == gather(group)[None, :]


def center(
    x: Float[Tensor, " n"],
    group: Int[Tensor, " n"],
    *,
    weights: Float[Tensor, " n"] | None = None,
    gather: Gather = identity,
) -> Float[Tensor, " n"]:
    """``x`` minus its group mean; the mean is a constant to the gradient."""
    return x - group_mean(x, group, weights=weights, gather=gather)


def group_softmax(
    x: Float[Tensor, " n"], group: Int[Tensor, " n"], *, temperature: float, gather: Gather = identity
) -> Float[Tensor, " n"]:
    """Softmax of ``x / temperature`` inside each group, in float32 or better: weights that sum to 1 per group.

    They have no gradient.
    """
    scaled = full_precision(x.detach()) / temperature
    members = torch.where(_same_group(group, gather), gather(scaled), -torch.inf)
    return (scaled - members.logsumexp(1)).exp()
