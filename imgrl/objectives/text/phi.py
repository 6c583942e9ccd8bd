"""Convex duals of f-divergences as gains of an implicit reward, scaled to value 0 and slope 1 at reward 0."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["STEEPEST", "Divergence", "phi", "phi_slope"]

Divergence = Literal["total_variation", "pearson", "hellinger", "kl", "jensen_shannon"]

STEEPEST = 100.0
"""Largest pull of one demonstration, in units of SFT's; below the x where it is reached phi goes on straight."""

_LOWEST: dict[str, float] = {
    "hellinger": STEEPEST**-0.5 - 1,
    "kl": -math.log(STEEPEST),
    "jensen_shannon": -math.log(2 * STEEPEST / (STEEPEST + 1)),
}


def phi(x: Float[Tensor, " *n"], *, divergence: Divergence) -> Float[Tensor, " *n"]:
    """Gain of an implicit reward ``x``: ``-f*(-x)`` of the divergence, finite for every finite ``x``.

    total_variation ``x`` (its box |x| <= 1/2 left out); pearson ``x - x^2 / 4``, which turns at x = 2; hellinger
    (squared) ``x / (1 + x)``; kl ``1 - exp(-x)`` (the conjugate's ``-exp(-x - 1)`` rescaled); jensen_shannon
    ``log(2 - exp(-x))``. The last three fall to minus infinity, hellinger at x = -1 and jensen_shannon at -log 2; where
    their slope reaches ``STEEPEST`` they go on along the tangent, so that a demonstration the policy lost still pulls.
    """
    if divergence not in get_args(Divergence):
        raise ValueError(
            f"Unknown divergence {divergence!r}; choose among {', '.join(get_args(Divergence))}."
        )
    if divergence == "total_variation":
        return x
    if divergence == "pearson":
        return x - x**2 / 4
    inside = x.clamp(min=_LOWEST[divergence])
    if divergence == "hellinger":
        value = inside / (1 + inside)
    elif divergence == "kl":
        value = -torch.expm1(-inside)
    else:
        value = torch.log1p(-torch.expm1(-inside))
    return value + STEEPEST * (x - inside)


def phi_slope(x: Float[Tensor, " *n"], *, divergence: Divergence) -> Float[Tensor, " *n"]:
    """``phi'(x)``: how hard a demonstration pulls, in units of SFT's pull; negative is pushing it away."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(phi(at, divergence=divergence).sum(), at)
    return slope
