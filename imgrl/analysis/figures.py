"""What is measured of a matrix: the settings, and the figures as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from imgrl.analysis.nulls import Overlap
from imgrl.errors import ConfigError

__all__ = ["MASKS", "Agreement", "Change", "Layer", "MaskOverlap", "Rotated", "Settings"]

MASKS = ("principal", "low", "principal_not_low")
"""The largest of |W0^(k)|; the smallest of |W0|; the first without the second."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured; 2511.08567 states neither k nor alpha."""

    k: tuple[int, ...] = (64,)
    """Principal directions, clipped to the rank of each matrix."""
    alpha: tuple[float, ...] = (0.3,)
    """Fraction of the weights in each mask."""
    exact: bool | None = None
    """The whole spectrum always (True), never (False), or of small matrices (None)."""
    bins: int = 100
    """Quantiles of |W| of the magnitude-matched null."""
    control: bool = True
    """Whether drift and angles are also measured of Gaussian noise of the update's size."""
    seed: int = 0
    """Of the randomised decomposition and of that noise."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"k must be at least one positive number of directions, but {self.k} was given")
        if not self.alpha or not all(0 < alpha < 1 for alpha in self.alpha):
            raise ConfigError(f"alpha must be fractions between 0 and 1, but {self.alpha} was given")


@dataclass(frozen=True, kw_only=True)
class MaskOverlap:
    """Overlap of one update with one mask."""

    mask: str
    """One of MASKS."""
    k: int
    alpha: float
    weights: str
    """"stored": what changed in bfloat16; "master": as many of the largest |W1 - W0| in float32, at
    most half of all weights (a mask of nearly everything says nothing)."""
    value: Overlap


@dataclass(kw_only=True)
class Change:
    """One trained version of a matrix against its base."""

    changed: int = 0
    relative: float | None = None
    """||W1 - W0||_F / ||W0||_F, which bounds the drift from above (Mirsky)."""
    drift: float | None = None
    exact: bool = True
    """Whether the drift is over all singular values rather than a lower estimate from the leading ones."""
    angles: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    """Principal angles in degrees, ascending, by k and side ("left" outputs, "right" inputs); none on a side where k
    takes in all directions."""
    noise_drift: float | None = None
    """Drift under Gaussian noise of the same Frobenius norm."""
    noise_angle: float | None = None
    """Its largest principal angle in degrees, at the first k."""
    overlaps: list[MaskOverlap] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    """Fraction changed in a row: quantiles 0, 5, 25, 50, 75, 95, 100 % over the rows."""
    columns: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two trained versions' changed weights: sums from which Jaccard indices follow."""

    runs: tuple[int, int]
    shared: float
    union: float
    matched_shared: float
    matched_union: float


@dataclass(frozen=True, kw_only=True)
class Rotated:
    """A run from a rotated base beside the others: sums from which Jaccard indices follow."""

    edited: bool
    """Whether the rotation changed this matrix; else both bases hold the same stored weights."""
    changed: int
    """Weights that the run from the rotated base changed."""
    shared: tuple[int, ...]
    """Weights that both it and the run changed, by run."""
    matched: tuple[float, ...]
    """As many expected if only the sizes of the weights in either base decided, by run."""


@dataclass(kw_only=True)
class Layer:
    """Everything about one matrix."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    changes: list[Change]
    agreements: list[Agreement] = field(default_factory=list)
    consensus: list[int] = field(default_factory=list)
    """Weights that 0, 1, … of the runs changed."""
    rotated: Rotated | None = None
    """Of a matrix, where there is a run from a rotated base."""
