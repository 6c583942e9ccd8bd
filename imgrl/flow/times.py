"""Which noise levels to train on: one stratified draw, shared by every image of a group.

Sharing the levels inside a group is what makes a group mean of per-level gains meaningful. The strata follow
Flow-Factory's time samplers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imgrl.flow.conventions import shift_sigma

__all__ = ["TimeSampler", "stratified_indices", "stratified_sigmas"]

Kind = Literal["discrete", "discrete_with_init", "discrete_wo_init", "uniform", "logit_normal", "bands"]


@dataclass(frozen=True, kw_only=True)
class TimeSampler:
    """How many noise levels each image is trained on, and which.

    Example:
        ``TimeSampler(count=4).draw(sigma_schedule(10), torch.Generator().manual_seed(0))`` gives 4 sigmas.
    """

    kind: Kind = "discrete"
    """``discrete*`` picks from the rollout's own levels, one per stratum, never the cleanest; ``_with_init``
    always includes the first level, ``_wo_init`` never. ``uniform`` and ``logit_normal`` are continuous, and so is
    ``bands``: one level from each of ``edges``' intervals."""
    count: int = 4
    """Levels per image and update; each costs one forward and backward pass."""
    low: float = 0.0
    """Start of the trained range as distance from pure noise, ``1 - sigma``."""
    high: float = 1.0
    """End of the trained range as distance from pure noise."""
    shift: float = 1.0
    """Of ``uniform`` and ``logit_normal`` only: above 1 moves the draws towards data."""
    edges: tuple[float, ...] = ()
    """Of ``bands`` only: ``count + 1`` rising distances from pure noise."""
    weights: tuple[float, ...] = ()
    """Factors of the loss, one for each of the ``count`` levels, noisiest first; none are all 1. Levels differ in how
    much of their gradient is noise by far more than in its size."""

    def __post_init__(self) -> None:
        """Refuse impossible ranges before anything is drawn."""
        if self.kind not in Kind.__args__:
            raise ValueError(f"Unknown time sampler {self.kind!r}; choose one of {', '.join(Kind.__args__)}.")
        if self.count < 1:
            raise ValueError(f"Expected count >= 1 noise levels, got {self.count}.")
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"Expected 0 <= low < high <= 1, got low={self.low}, high={self.high}.")
        if self.shift <= 0:
            raise ValueError(f"Expected a positive shift, got {self.shift}; 1.0 means none.")
        if self.weights and (
            len(self.weights) != self.count or not 0 < min(self.weights) <= max(self.weights) < 1e9
        ):
            raise ValueError(
                f"Expected one positive weight for each of the {self.count} noise levels, got {list(self.weights)}."
            )
        self._check_edges()

    def _check_edges(self) -> None:
        if self.kind != "bands":
            if self.edges:
                raise ValueError(
                    f"Expected edges with kind='bands' only, got them with {self.kind!r}; leave them out."
                )
            return
        rising = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
        if len(self.edges) != self.count + 1 or not rising or self.edges[0] < 0 or self.edges[-1] > 1:
            raise ValueError(
                f"Expected {self.count + 1} rising edges in [0, 1] for the bands of {self.count} noise levels, got "
                f"{list(self.edges)}."
            )
        if (self.low, self.high, self.shift) != (0.0, 1.0, 1.0):
            raise ValueError(
                "Expected no low, high or shift with kind='bands'; its edges say where levels are."
            )

    def weight(self, level: int) -> float:
        """Factor of the loss at the ``level``-th of an image's noise levels."""
        return self.weights[level] if self.weights else 1.0

    def draw(
        self, sigmas: Float[Tensor, " levels"], generator: torch.Generator | None = None
    ) -> Float[Tensor, " count"]:
        """Draw ``count`` noise levels; ``sigmas`` is the rollout's schedule, its final 0 included."""
        draws = torch.rand(self.count, generator=generator, dtype=torch.float64)
        if self.kind in ("uniform", "logit_normal"):
            drawn = stratified_sigmas(draws, self.kind, low=self.low, high=self.high, shift=self.shift)
            return drawn.to(sigmas)
        if self.kind == "bands":
            edges = torch.tensor(self.edges, dtype=torch.float64)
            return (1 - (edges[:-1] + draws * edges.diff())).to(sigmas)
        levels = sigmas[:-1]
        if self.kind == "discrete_with_init":
            draws = draws[1:]
        return levels[
            stratified_indices(draws, levels, self.kind, low=self.low, high=self.high).to(levels.device)
        ]


def stratified_indices(
    draws: Float[Tensor, " draws"],
    levels: Float[Tensor, " levels"],
    kind: str,
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> Int[Tensor, " count"]:
    """Turn uniform numbers into indices of ``levels`` (falling, without the final 0), one per stratum.

    Strata have whole-number edges, the upper one excluded: the cleanest level inside the range is never
    drawn.
    """
    distance = 1 - levels.cpu().double()
    near = torch.nonzero((distance >= low - 1e-6) & (distance <= high + 1e-6)).flatten()
    inside = [int(index) for index in near]
    if len(inside) < 2:
        raise ValueError(
            f"Expected at least 2 noise levels between low={low} and high={high}, found {len(inside)}; "
            "use more rollout steps or a wider range."
        )
    first, last = inside[0], inside[-1]
    start = first if kind == "discrete" else first + 1
    if start >= last:
        raise ValueError(f"Expected at least 3 noise levels in the range for {kind!r}, found {len(inside)}.")
    edges = torch.linspace(start, last, len(draws) + 1, dtype=torch.float64).add(1e-9).floor().long()
    index = edges[:-1] + (draws.cpu() * edges.diff()).floor().long()
    return torch.cat([torch.tensor([first]), index]) if kind == "discrete_with_init" else index


def stratified_sigmas(
    draws: Float[Tensor, " count"], kind: str, *, low: float = 0.0, high: float = 1.0, shift: float = 1.0
) -> Float[Tensor, " count"]:
    """Turn uniform numbers into continuous noise levels, one per equal stratum, cleaner with each."""
    count = len(draws)
    part = (torch.arange(count, dtype=draws.dtype) + draws) / count
    if kind == "logit_normal":
        normal = cast(Tensor, torch.special.ndtri(part))  # pyright: ignore[reportUnknownMemberType]
        part = shift_sigma(torch.sigmoid(normal), shift=shift).clamp(0.01, 1 - 1e-6)
        return 1 - (low + part * (high - low))
    return 1 - shift_sigma(low + part * (high - low), shift=shift)
