"""What overlaps and agreements of update masks would be if only |W| decided which stored weights change.

A step of size d moves a bfloat16 weight only if d exceeds half the gap to its neighbour, and that gap grows with |w|.
So any update, even isotropic noise, changes small weights more often than large ones, and two unrelated updates agree
more often than chance. The density baseline of 2511.08567 does not see this; the magnitude-matched null does: changes
keep their rate within each quantile of |W| and fall at random inside it. Expected values are in closed form here,
sums over the quantiles of hypergeometric means, so nothing is sampled.

Two runs from different bases, such as one and its rotation, each follow the |W| of their own: the null for them keeps
the rate of either run within the quantiles of its own base.

A mask that is itself cut by |W|, as the low-magnitude one is, has its matched null equal to what is observed, whatever
happened. What says something about it is the noise null: the same number of changes by Gaussian noise, equal for all
weights, rounded to bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Overlap", "bernoulli_jaccard", "crossed_overlap", "matched_jaccard", "noise_rates", "overlap"]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of an update falls on a mask, beside both nulls. Sums over matrices are again overlaps."""

    hits: float
    """|mask and changed|."""
    changed: float
    by_density: float
    """Hits expected if changes fell anywhere in their matrix."""
    by_magnitude: float
    """Hits expected if changes kept their rate in each quantile of |W|."""
    by_noise: float
    """Hits expected if rounded Gaussian noise had made as many changes."""
    variance: float
    """Of the hits under the magnitude-matched null."""

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            hits=self.hits + other.hits,
            changed=self.changed + other.changed,
            by_density=self.by_density + other.by_density,
            by_magnitude=self.by_magnitude + other.by_magnitude,
            by_noise=self.by_noise + other.by_noise,
            variance=self.variance + other.variance,
        )

    def report(self) -> dict[str, float | None]:
        """Observed share, the nulls' shares, and the ratios observed / null; None where nothing changed."""
        return {
            "observed": _ratio(self.hits, self.changed),
            "density_null": _ratio(self.by_density, self.changed),
            "matched_null": _ratio(self.by_magnitude, self.changed),
            "noise_null": _ratio(self.by_noise, self.changed),
            "matched_null_std": _ratio(self.variance**0.5, self.changed),
            "over_density": _ratio(self.hits, self.by_density),
            "over_matched": _ratio(self.hits, self.by_magnitude),
            "over_noise": _ratio(self.hits, self.by_noise),
        }


def overlap(total: Tensor, masked: Tensor, changed: Tensor, both: Tensor, noise: Tensor) -> Overlap:
    """Overlap(mask, changed) = |mask and changed| / |changed| with its nulls.

    Args:
        total: weights in each quantile of |W| [bins].
        masked: those in the mask [bins].
        changed: those that changed [bins].
        both: those in the mask that changed [bins].
        noise: fraction that noise would change [bins], see :func:`noise_rates`.
    """
    n, m, c = total.double().clamp_min(1), masked.double(), changed.double()
    share = m / n
    spread = c * share * (1 - share) * (n - c) / (n - 1).clamp_min(1)
    return Overlap(
        hits=float(both.sum()),
        changed=float(c.sum()),
        by_density=float(c.sum() * m.sum() / total.sum().clamp_min(1)),
        by_magnitude=float((c * share).sum()),
        by_noise=float((noise * m).sum() / (noise * total).sum().clamp_min(1e-300) * c.sum()),
        variance=float(spread.sum()),
    )


def noise_rates(counts: Tensor, place: Tensor, bins: int, changed: int) -> Tensor:
    """Fraction of each quantile of |W| that rounded Gaussian noise changes, its size set so that ``changed`` do.

    A weight at level l moves when the noise exceeds half the distance to the neighbour on its side.

    Args:
        counts: weights a level [LEVELS].
        place: quantile of each level [LEVELS].
        bins: number of quantiles.
        changed: weights to be changed in all.

    Returns:
        [bins], float64.
    """
    used = counts.nonzero().flatten()
    magnitude = _magnitudes(torch.stack([used - 1, used, used + 1]).clamp_min(0))
    # Below zero lies the smallest number of the other sign.
    down = torch.where(used > 0, magnitude[1] - magnitude[0], magnitude[2])
    up, weight = magnitude[2] - magnitude[1], counts[used].double()

    def rates(size: float) -> Tensor:
        return (torch.erfc(down / size) + torch.erfc(up / size)) / 2

    low, high = 1e-40, 1e40
    for _ in range(200):  # bisection of the logarithm
        middle = (low * high) ** 0.5
        low, high = (middle, high) if float((rates(middle) * weight).sum()) < changed else (low, middle)
    found = torch.zeros(bins, dtype=torch.float64).index_add_(0, place[used], rates(low) * weight)
    total = torch.zeros(bins, dtype=torch.float64).index_add_(0, place[used], weight)
    return found / total.clamp_min(1)


def _magnitudes(levels: Tensor) -> Tensor:
    return levels.to(torch.int16).view(torch.bfloat16).double()


def bernoulli_jaccard(p: float, q: float) -> float | None:
    """Jaccard index of two independent masks of densities p and q: pq / (p + q - pq); None if both are empty."""
    return _ratio(p * q, p + q - p * q)


def matched_jaccard(total: Tensor, one: Tensor, other: Tensor) -> tuple[float, float]:
    """Intersection and union expected of two masks that are independent given the quantile of |W|.

    Args:
        total: weights in each quantile [bins].
        one: those that the first run changed [bins].
        other: those that the second run changed [bins].
    """
    shared = float((one.double() * other.double() / total.double().clamp_min(1)).sum())
    return shared, float(one.sum() + other.sum()) - shared


def crossed_overlap(joint: Tensor, one: Tensor, other: Tensor) -> float:
    """Intersection expected of the changes of two runs from different bases, if only sizes of weights decided them.

    Each run's changes keep their rate in every quantile of |W| of its own base and fall at random inside it. A weight
    in quantile b of the one base and c of the other is then changed by both with probability r(b) s(c), r and s the
    two rates, so n(b, c) such weights add n(b, c) r(b) s(c). Where both bases agree n is diagonal and this is
    :func:`matched_jaccard`'s; where a rotation has left no relation between the sizes, n(b, c) is proportional to
    n(b) n(c) and this is Bernoulli's. Of weights in float32 it does not know how near to a rounding boundary they lie,
    which runs from one base share.

    Rates within the cells (b, c) would be no null: of 100 x 100 cells most hold a weight or none, and whatever was
    changed would be expected.

    Args:
        joint: weights by their quantiles in both bases [bins, bins].
        one: those that the run from the first base changed, by their quantile there [bins].
        other: those that the run from the second changed, by their quantile there [bins].
    """
    n = joint.double()
    rates, others = one.double() / n.sum(1).clamp_min(1), other.double() / n.sum(0).clamp_min(1)
    return float(rates @ n @ others)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
