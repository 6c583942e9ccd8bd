"""Rewards by smoothed rank: ADPO's answer to heavy-tailed noise (arXiv 2510.18913), reconstructed."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.flow.conventions import full_precision

__all__ = ["kde_scores"]


def kde_scores(reward: Float[Tensor, " b k"], *, bandwidth: float | None = None) -> Float[Tensor, " b k"]:
    """Log-odds of each reward's smoothed rank in its list: no single reward can dominate.

    A reconstruction: the paper's first versions name a chain of kernel density, distribution function and logit, and
    say what it is for; the formula was not available. Here ``F_i = mean_j Phi((R_i - R_j) / h)``, kept inside
    ``[1 / 2k, 1 - 1 / 2k]``, with Silverman's robust ``h = 0.9 min(std, IQR / 1.34) k^(-1/5)``, at least 0.001.
    For ``h -> 0`` F are mid-ranks, for ``h -> inf`` all are 1/2.

    Args:
        reward: rewards of each list, in any unit.
        bandwidth: ``h`` in units of reward; None is Silverman's, by list.
    """
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"Expected a bandwidth > 0, or None for Silverman's rule, got {bandwidth}.")
    reward = full_precision(reward).detach()
    k = reward.shape[-1]
    if bandwidth is None:
        low, high = reward.quantile(reward.new_tensor([0.25, 0.75]), dim=-1)
        spread = torch.minimum(reward.std(-1), (high - low) / 1.34)
        h = (0.9 * spread * k**-0.2).clamp(min=1e-3)[:, None, None]
    else:
        h = bandwidth
    rank = (0.5 * torch.erfc((reward[:, None, :] - reward[:, :, None]) / h / math.sqrt(2))).mean(-1)
    return rank.clamp(1 / (2 * k), 1 - 1 / (2 * k)).logit()
