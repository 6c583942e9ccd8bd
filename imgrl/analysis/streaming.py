"""Products with matrices that are read a few rows at a time, and what a decomposition needs of them.

Sums run in float64: an eigenvalue of the Gram matrix then gives a singular value to about 1e-8 of the largest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imgrl.analysis.weights import BLOCK, Matrix, blocks

__all__ = ["DEPTH", "ROWS", "gram", "krylov", "times", "times_transposed", "unit"]

DEPTH = 4
"""Multiplications by the Gram matrix in the randomised decomposition."""
ROWS = 1 << 14
"""Rows of singular vectors in float64 at once."""


def gram(matrix: Matrix) -> Tensor:
    """W^T W or W W^T, whichever is smaller, [side, side] in float64."""
    product = torch.zeros(matrix.side, matrix.side, dtype=torch.float64)
    if matrix.shape[0] >= matrix.shape[1]:
        for a, b in blocks(matrix.shape):
            part = matrix.rows(a, b).double()
            product.addmm_(part.T, part)
        return product
    # Columns are gathered from rows: a wide matrix is read once for each group of columns.
    for c, d in blocks((matrix.shape[1], matrix.shape[0]), 4 * BLOCK):
        part = torch.empty(matrix.shape[0], d - c, dtype=torch.float64)
        for a, b in blocks(matrix.shape):
            part[a:b] = matrix.rows(a, b)[:, c:d]
        product.addmm_(part, part.T)
    return product


def krylov(matrix: Matrix, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Approximate leading singular values and right vectors: block Krylov iteration (Musco & Musco, 1504.05477).

    Args:
        matrix: read DEPTH + 1 times.
        width: directions, more than are wanted.
        seed: of the random start.

    Returns:
        Values [width], descending, and orthonormal columns [columns, width], both float64.
    """
    generator = torch.Generator().manual_seed(seed)
    block = _orthonormal(torch.randn(matrix.shape[1], width, generator=generator)).float()
    basis: list[Tensor] = []
    for _ in range(DEPTH):
        product = torch.zeros(matrix.shape[1], width)
        for a, b in blocks(matrix.shape):
            part = matrix.rows(a, b).float()
            product.addmm_(part.T, part @ block)
        block = _orthonormal(product).float()
        basis.append(block)
    span = _orthonormal(torch.cat(basis, 1)).float()
    small = torch.zeros(span.shape[1], span.shape[1], dtype=torch.float64)
    for a, b in blocks(matrix.shape):
        image = (matrix.rows(a, b).float() @ span).double()
        small.addmm_(image.T, image)
    values, vectors = torch.linalg.eigh(small)
    leading = vectors.flip(1)[:, :width]
    return values.flip(0)[:width].clamp_min(0).sqrt(), span.double() @ leading


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns.double())[0]


def unit(columns: Tensor) -> Tensor:
    """Remove rounding from columns [d, k] that are orthonormal but for it, in place; a QR would flip signs."""
    inner = torch.zeros(columns.shape[1], columns.shape[1], dtype=torch.float64)
    for part in columns.split(ROWS):
        inner.addmm_(part.double().T, part.double())
    root = torch.linalg.cholesky(inner)
    for part in columns.split(ROWS):
        part.copy_(torch.linalg.solve_triangular(root, part.double().T, upper=False).T)
    return columns


def times(matrix: Matrix, vectors: Tensor) -> Tensor:
    """W V, [rows, k] in float32, with products in float64."""
    product = torch.empty(matrix.shape[0], vectors.shape[1])
    for a, b in blocks(matrix.shape):
        product[a:b] = matrix.rows(a, b).double() @ vectors
    return product


def times_transposed(matrix: Matrix, vectors: Tensor) -> Tensor:
    """W^T V, [columns, k] in float32, with products in float64."""
    product = torch.zeros(matrix.shape[1], vectors.shape[1], dtype=torch.float64)
    for a, b in blocks(matrix.shape):
        product.addmm_(matrix.rows(a, b).double().T, vectors[a:b])
    return product.float()
