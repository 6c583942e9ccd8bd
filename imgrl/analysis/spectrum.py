"""Singular values and leading subspaces of matrices that are read a few rows at a time; drift and rotation.

Everything is done on the Gram matrix of the shorter side (exact) or on a Krylov basis of it (randomised), so that no
second copy of a matrix is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imgrl.analysis.streaming import DEPTH, ROWS, gram, krylov, times, times_transposed, unit
from imgrl.analysis.weights import Matrix

__all__ = ["EXACT_SIDE", "Spectrum", "angles", "decompose", "drift", "principal_rows", "with_noise"]

EXACT_SIDE = 768
"""Up to this shorter side the whole spectrum is cheap, and taken unless told otherwise."""
_OVERSAMPLING = 16
_SALT = 0x5EED_F00D  # a model initialised with seed 0 must not meet its own draw again as noise


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Leading part of a singular value decomposition."""

    values: Tensor
    """Singular values, descending, float64: all of them if exact, else the leading k."""
    left: Tensor
    """Left singular vectors [rows, k], float32."""
    right: Tensor
    """Right singular vectors [columns, k], float32."""
    exact: bool
    """Whether the whole spectrum was computed."""

    @property
    def k(self) -> int:
        """Leading directions kept: as asked for, but no more than the numerical rank."""
        return self.left.shape[1]

    def head(self, k: int) -> Spectrum:
        """The same with at most k directions."""
        return Spectrum(values=self.values, left=self.left[:, :k], right=self.right[:, :k], exact=self.exact)


def decompose(matrix: Matrix, k: int, *, exact: bool | None = None, seed: int = 0) -> Spectrum:
    """Leading k singular triplets, and all singular values where they are exact.

    Args:
        matrix: of any shape; it is read several times.
        k: directions, clipped to the numerical rank.
        exact: the whole spectrum from the Gram matrix (True), or block Krylov iteration from a seeded random start
            (False; Musco & Musco, 1504.05477), which resolves directions only as far as singular values differ; None
            decides by size.
        seed: of the random start. Two matrices compared with each other must have the same one.
    """
    width = DEPTH * (k + _OVERSAMPLING)
    if exact is None:
        exact = matrix.side <= EXACT_SIDE
    if exact or width >= matrix.side:
        values, basis = torch.linalg.eigh(gram(matrix))
        values = values.flip(0).clamp_min(0).sqrt()
        basis = basis.flip(1)
        exact = True
    else:
        values, basis = krylov(matrix, k + _OVERSAMPLING, seed)
        values = values[:k]
    k = min(k, int((values > max(matrix.shape) * torch.finfo(torch.float32).eps * values[0]).sum()))
    short = (basis[:, :k] / values[:k]).contiguous()
    wide = exact and matrix.shape[0] < matrix.shape[1]
    other = unit(times_transposed(matrix, short) if wide else times(matrix, short))
    short = basis[:, :k].float().contiguous()
    left, right = (short, other) if wide else (other, short)
    return Spectrum(values=values, left=left, right=right, exact=exact)


def drift(before: Spectrum, after: Spectrum, norm: float) -> float | None:
    """Normalised spectral shift ||sigma(W1) - sigma(W0)|| / ||sigma(W0)|| (2511.08567, section 4).

    Over all singular values where both are exact; else over the leading ones, a lower estimate.

    Args:
        before: spectrum of W0.
        after: spectrum of W1.
        norm: Frobenius norm of W0, which is ||sigma(W0)||.

    Returns:
        None for a matrix of zeros.
    """
    n = min(len(before.values), len(after.values))
    return float((after.values[:n] - before.values[:n]).norm()) / norm if norm > 0 else None


def angles(one: Tensor, other: Tensor) -> Tensor:
    """Principal angles in radians between two subspaces of equal dimension, ascending.

    cos theta_i are the singular values of one^T other. Angles below 45 degrees are taken from the sine instead, which
    does not lose their digits (Björck & Golub 1973).

    Args:
        one: orthonormal columns [d, k].
        other: orthonormal columns [d, k].

    Returns:
        [k], float64.
    """
    k = one.shape[1]
    inner = torch.zeros(k, k, dtype=torch.float64)
    for u, v in zip(one.split(ROWS), other.split(ROWS), strict=True):
        inner.addmm_(u.double().T, v.double())
    rest = torch.zeros(k, k, dtype=torch.float64)
    for u, v in zip(one.split(ROWS), other.split(ROWS), strict=True):
        outside = v.double() - u.double() @ inner
        rest.addmm_(outside.T, outside)
    cosines = torch.linalg.svdvals(inner).clamp(0, 1)
    sines = torch.linalg.eigvalsh(rest).clamp(0, 1).sqrt()
    return torch.where(cosines > 0.5**0.5, torch.asin(sines), torch.acos(cosines))


def principal_rows(spectrum: Spectrum, start: int, stop: int) -> Tensor:
    """|W^(k)|: magnitudes of the rank-k reconstruction in some rows [stop - start, columns], float32."""
    scaled = spectrum.left[start:stop] * spectrum.values[: spectrum.k].float()
    return (scaled @ spectrum.right.T).abs_()


def with_noise(matrix: Matrix, norm: float, seed: int) -> Matrix:
    """The matrix plus Gaussian noise of about this Frobenius norm, the same on every reading by :func:`blocks`.

    Drift and angles grow with the size of an update, so they are read beside those of noise of equal size.
    """
    size = norm / matrix.parameters**0.5

    def rows(a: int, b: int) -> Tensor:
        generator = torch.Generator().manual_seed(_SALT + seed * 1_000_003 + a)
        return matrix.rows(a, b).float() + size * torch.randn(b - a, matrix.shape[1], generator=generator)

    return replace(matrix, dtype=torch.float32, rows=rows)
