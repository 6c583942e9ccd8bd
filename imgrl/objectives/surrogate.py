"""The clipped surrogate that every ratio-based policy gradient shares."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["clipped_surrogate"]


def clipped_surrogate(
    log_ratio: Float[Tensor, " *n"],
    advantage: Float[Tensor, " *n"],
    *,
    low: float,
    high: float,
    centre: Float[Tensor, " *n"] | None = None,
) -> Float[Tensor, " *n"]:
    """PPO's pessimistic loss ``max(-A r, -A clamp(r, c - low, c + high))``, ``r = exp(log_ratio)``.

    Schulman et al. 2017 (arXiv 1707.06347), eq. 7, where ``c`` is 1; at ratio 1 its gradient is ``-A grad log p``. For
    data of an older policy ``centre`` is the ratio of the policy at the start of the step (ReMix, arXiv 2507.06892),
    without gradient.
    """
    if not 0 <= low or not 0 <= high:
        raise ValueError(f"Expected clip distances >= 0, got low={low} and high={high}.")
    ratio = log_ratio.exp()
    if centre is None:
        clipped = ratio.clamp(1 - low, 1 + high)
    else:
        clipped = torch.minimum(torch.maximum(ratio, centre.detach() - low), centre.detach() + high)
    return torch.maximum(-advantage * ratio, -advantage * clipped)
