"""The clipped surrogate that every ratio-based policy gradient shares."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["clipped_surrogate"]


def clipped_surrogate(
    log_ratio: Float[Tensor, " *n"], advantage: Float[Tensor, " *n"], *, low: float, high: float
) -> Float[Tensor, " *n"]:
    """PPO's pessimistic loss ``max(-A r, -A clamp(r, 1 - low, 1 + high))``, ``r = exp(log_ratio)``.

    Schulman et al. 2017 (arXiv 1707.06347), eq. 7. At ratio 1 its gradient is ``-A grad log p``.
    """
    if not 0 <= low or not 0 <= high:
        raise ValueError(f"Expected clip distances >= 0, got low={low} and high={high}.")
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))
