"""Which tokens of a response are forks, and the band their entropy should stay in (SPINE, arXiv 2511.17938).

Thresholds and limits are constants to the gradient. Two published forms: the most uncertain fifth of each response with
quantiles as limits, and Otsu's threshold with the median and the median absolute deviation.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Limits", "entropy_band", "fork_mask", "limits_of", "otsu_threshold"]

_BINS, _SHARE, _MAD = 100, 0.2, 1.4826  # MAD times 1.4826 is a normal's standard deviation


class Limits(NamedTuple):
    """A band of entropy for each response, nats."""

    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]


def otsu_threshold(values: Float[Tensor, " m"], *, bins: int = _BINS) -> Float[Tensor, ""]:
    """The cut between two classes that maximises the variance between them (Otsu 1979), on a histogram.

    Equal values have no classes: the threshold is then the value itself, and ``>=`` selects all.
    """
    low, high = values.min(), values.max()
    if low == high:
        return high
    counts = torch.histc(values.float(), bins=bins, min=float(low), max=float(high)).to(values)
    width = (high - low) / bins
    centres = low + width * (torch.arange(bins, dtype=values.dtype, device=values.device) + 0.5)
    below, above = counts.cumsum(0)[:-1], counts.flip(0).cumsum(0).flip(0)[1:]
    mass = counts * centres
    mean_below = mass.cumsum(0)[:-1] / below.clamp(min=1)
    mean_above = mass.flip(0).cumsum(0).flip(0)[1:] / above.clamp(min=1)
    between = below * above * (mean_below - mean_above) ** 2
    # Empty bins between two heaps tie: the middle of the tie is as far from either as can be.
    best = (between >= between.max() * (1 - 1e-6)).nonzero().flatten()
    return low + width * (best[len(best) // 2] + 1)


def fork_mask(
    entropy: Float[Tensor, " n t"],
    mask: Float[Tensor, " n t"],
    *,
    selection: Literal["otsu", "quantile", "all"] = "otsu",
) -> Float[Tensor, " n t"]:
    """1 on each response's forking tokens, without gradient; at least one a response."""
    counts = mask > 0
    if selection == "all":
        return counts.to(entropy.dtype)
    values = entropy.detach()
    chosen = torch.zeros_like(values)
    for row, (own, here) in enumerate(zip(values, counts, strict=True)):
        inside = own[here]
        cut = otsu_threshold(inside) if selection == "otsu" else inside.quantile(1 - _SHARE)
        chosen[row] = ((own >= cut) & here).to(values.dtype)
    return chosen


def limits_of(
    entropy: Float[Tensor, " n t"],
    chosen: Float[Tensor, " n t"],
    *,
    selection: Literal["otsu", "quantile", "all"] = "otsu",
) -> Limits:
    """The band of each response from its chosen tokens.

    ``otsu`` and ``all``: the median above, and one deviation (1.4826 MAD) under it below. ``quantile``: the median
    above, the tenth part below.
    """
    rows = [own[here > 0] for own, here in zip(entropy.detach(), chosen, strict=True)]
    middle = torch.stack([row.quantile(0.5) for row in rows])
    if selection == "quantile":
        return Limits(torch.stack([row.quantile(0.1) for row in rows]), middle)
    spread = torch.stack([(row - m).abs().quantile(0.5) for row, m in zip(rows, middle, strict=True)])
    return Limits((middle - (_MAD * spread).clamp(min=1e-6)).clamp(min=0), middle)


def entropy_band(
    entropy: Float[Tensor, " n t"],
    chosen: Float[Tensor, " n t"],
    limits: Limits,
    *,
    low: float,
    high: float,
) -> Float[Tensor, " n t"]:
    """``low relu(limit - H) + high relu(H - limit)`` on chosen tokens, 0 elsewhere; live through ``H``."""
    under = torch.relu(limits.low.detach()[:, None] - entropy)
    over = torch.relu(entropy - limits.high.detach()[:, None])
    return chosen * (low * under + high * over)
