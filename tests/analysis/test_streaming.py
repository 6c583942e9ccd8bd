import pytest
import torch

from imgrl.analysis.streaming import gram, krylov, times, times_transposed, unit
from imgrl.analysis.weights import Matrix, as_matrix

SHAPES = [(50, 30), (30, 50)]


def weight(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks even of small matrices."""
    from imgrl.analysis import streaming, weights

    monkeypatch.setattr(streaming, "BLOCK", 64)
    monkeypatch.setattr(streaming, "blocks", lambda shape, entries=256: weights.blocks(shape, entries))
    monkeypatch.setattr(streaming, "ROWS", 7)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_in_blocks_are_torchs(shape, small_blocks):
    w = weight(*shape)
    matrix = as_matrix(w)
    short = w.T @ w if shape[0] > shape[1] else w @ w.T
    torch.testing.assert_close(gram(matrix), short)
    v, u = weight(shape[1], 4), weight(shape[0], 4)
    torch.testing.assert_close(times(matrix, v), (w @ v).float())
    torch.testing.assert_close(times_transposed(matrix, u), (w.T @ u).float())


def test_columns_are_made_orthonormal_without_turning_them(small_blocks):
    exact = torch.linalg.qr(weight(50, 5))[0]
    columns = unit((exact + 1e-3 * weight(50, 5)).float())
    torch.testing.assert_close(columns.T @ columns, torch.eye(5), rtol=0, atol=1e-6)
    assert (columns * exact).sum(0).min() > 0.99


@pytest.mark.parametrize("shape", SHAPES)
def test_krylov_of_the_whole_space_is_the_decomposition(shape, small_blocks):
    w = weight(*shape).float()
    values, vectors = krylov(as_matrix(w), 10, seed=0)
    torch.testing.assert_close(values[:3].float(), torch.linalg.svdvals(w)[:3], rtol=1e-3, atol=0)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-5)


def test_a_matrix_is_read_a_block_at_a_time():
    tall = weight(5000, 1000).float()
    asked = []

    def rows(a, b):
        asked.append((b - a) * 1000)
        return tall[a:b]

    matrix = Matrix(name="w", shape=(5000, 1000), dtype=torch.float32, rows=rows)
    krylov(matrix, 8, seed=0)
    assert max(asked) <= 1 << 20 and sum(asked) == 5 * tall.numel()
