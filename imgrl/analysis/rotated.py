"""The run from a rotated base beside those from the base itself, a matrix at a time and read in blocks of rows.

The control of 2511.08567 (see the module on rotation): which weights a run from the base changed and which a run from
the rotated base did, in matrices that the rotation edited and in those that it left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from imgrl.analysis.figures import Rotated
from imgrl.analysis.nulls import crossed_overlap
from imgrl.analysis.update import LEVELS, bins_of_levels, changed, levels
from imgrl.analysis.weights import BLOCK, Matrix, blocks
from imgrl.errors import ModelError

__all__ = ["beside_rotated"]

_ENTRIES = BLOCK // 2  # two checkpoints more at once than elsewhere


def beside_rotated(
    base: Matrix, tuned: Sequence[Matrix], rotated: Matrix, rotated_tuned: Matrix, *, bins: int = 100
) -> Rotated:
    """Count what the runs changed together, all matrices being of one shape.

    Args:
        base: W0.
        tuned: runs from it.
        rotated: W0 of the rotated base; where it stores the same weights, the rotation did not edit this matrix.
        rotated_tuned: the run from that.
        bins: quantiles of |W| of either base.

    Raises:
        ModelError: if a weight of the rotated pair is not finite.
    """
    places = [bins_of_levels(_levels(matrix), bins) for matrix in (base, rotated)]
    joint = torch.zeros(bins * bins, dtype=torch.int64)
    theirs = torch.zeros(bins, dtype=torch.int64)
    ours = [torch.zeros(bins, dtype=torch.int64) for _ in tuned]
    shared, edited = [0] * len(tuned), False
    for a, b in blocks(base.shape, _ENTRIES):
        start, turned, after = base.rows(a, b), rotated.rows(a, b), rotated_tuned.rows(a, b)
        if not bool(torch.isfinite(turned).all() and torch.isfinite(after).all()):
            raise ModelError(
                f"{base.name} of --rotated holds weights that are not finite: that checkpoint is broken"
            )
        edited = edited or bool(changed(start, turned).any())
        first, second = (_places(w, place) for w, place in zip((start, turned), places, strict=True))
        moved = changed(turned, after).flatten()
        theirs += torch.bincount(second[moved], minlength=bins)
        for i, matrix in enumerate(tuned):
            own = changed(start, matrix.rows(a, b)).flatten()
            ours[i] += torch.bincount(first[own], minlength=bins)
            shared[i] += int((own & moved).sum())
        joint += torch.bincount(first.mul_(bins).add_(second), minlength=bins * bins)
    cells = joint.view(bins, bins)
    return Rotated(
        edited=edited,
        changed=int(theirs.sum()),
        shared=tuple(shared),
        matched=tuple(crossed_overlap(cells, own, theirs) for own in ours),
    )


def _levels(matrix: Matrix) -> Tensor:
    """Weights a level [LEVELS]."""
    counts = torch.zeros(LEVELS, dtype=torch.int64)
    for a, b in blocks(matrix.shape, _ENTRIES):
        counts += torch.bincount(levels(matrix.rows(a, b)).flatten(), minlength=LEVELS)
    return counts


def _places(weights: Tensor, place: Tensor) -> Tensor:
    """The quantile of each weight of a block, flat."""
    return place[levels(weights).long().flatten()]
