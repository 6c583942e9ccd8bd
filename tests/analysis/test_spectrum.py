import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from imgrl.analysis.spectrum import angles, decompose, drift, principal_rows, with_noise
from imgrl.analysis.weights import as_matrix, blocks

SHAPES = [(40, 40), (90, 30), (30, 90)]


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(size, seed=0):
    return torch.linalg.qr(gaussian(size, size, seed=seed).double())[0]


def decaying(rows, columns, seed=0):
    """A matrix whose singular values fall by a fifth each, so that leading directions are well defined."""
    rank = min(rows, columns)
    u, v = orthogonal(rows, seed)[:, :rank], orthogonal(columns, seed + 1)[:, :rank]
    return (u * 0.8 ** torch.arange(rank)) @ v.T


def spectrum_of(weight, k=8, **options):
    return decompose(as_matrix(weight), k, **options)


def shift(before, after):
    """NSS by numpy's SVD."""
    one, other = (np.linalg.svd(w.double().numpy(), compute_uv=False) for w in (before, after))
    return np.linalg.norm(other - one) / np.linalg.norm(one)


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_singular_triplets_are_numpys(shape):
    weight = gaussian(*shape)
    found = spectrum_of(weight, exact=True)
    u, s, vt = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    assert found.exact and found.left.shape == (shape[0], 8) and found.right.shape == (shape[1], 8)
    np.testing.assert_allclose(found.values, s, atol=1e-6 * s[0])
    for ours, theirs in ((found.left, u[:, :8]), (found.right, vt[:8].T)):
        np.testing.assert_allclose(np.abs((ours.double().numpy() * theirs).sum(0)), 1, atol=1e-6)
    rebuilt = (u[:, :8] * s[:8]) @ vt[:8]
    np.testing.assert_allclose(principal_rows(found, 0, shape[0]), np.abs(rebuilt), atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 260), (700, 260), (260, 700)])
def test_the_randomised_decomposition_agrees_where_singular_values_fall(shape):
    weight = decaying(*shape)
    found = spectrum_of(weight, k=8, exact=False)
    u, s, vt = np.linalg.svd(weight.numpy(), full_matrices=False)
    assert not found.exact and len(found.values) == 8
    np.testing.assert_allclose(found.values, s[:8], rtol=1e-5)
    assert np.rad2deg(subspace_angles(found.left.double().numpy(), u[:, :8])).max() < 0.01
    assert np.rad2deg(subspace_angles(found.right.double().numpy(), vt[:8].T)).max() < 0.01


def test_the_seed_decides_the_randomised_decomposition():
    weight = gaussian(300, 400)
    one, same, other = (spectrum_of(weight, k=4, exact=False, seed=seed).left for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_directions_are_clipped_to_the_rank():
    weight = gaussian(30, 3) @ gaussian(3, 40, seed=1)
    assert spectrum_of(weight, k=8).k == 3
    assert spectrum_of(gaussian(5, 40), k=8).k == 5
    assert spectrum_of(torch.zeros(6, 5)).k == 0


def test_angles_are_scipys_down_to_tiny_ones():
    base = orthogonal(50)[:, :6]
    for size in (1e-5, 1e-2, 1.0):
        other = torch.linalg.qr(base + size * gaussian(50, 6, seed=2).double())[0]
        expected = np.sort(subspace_angles(base.numpy(), other.numpy()))
        np.testing.assert_allclose(angles(base, other), expected, rtol=1e-3, atol=1e-9)


def test_nothing_changed_is_no_drift_and_no_angle():
    found = spectrum_of(gaussian(40, 30))
    assert drift(found, found, 1.0) == 0
    assert torch.rad2deg(angles(found.left, found.left)).max() < 1e-4


@given(factor=st.floats(-3, 3).filter(lambda c: abs(c) > 0.01))
@settings(max_examples=20, deadline=None)
def test_a_multiple_drifts_by_its_factor_and_does_not_rotate(factor):
    weight = gaussian(40, 30).double()
    before, after = spectrum_of(weight), spectrum_of(factor * weight)
    assert drift(before, after, float(weight.norm())) == pytest.approx(abs(abs(factor) - 1), abs=1e-9)
    assert torch.rad2deg(angles(before.left, after.left)).max() < 1e-3
    assert torch.rad2deg(angles(before.right, after.right)).max() < 1e-3


def test_an_orthogonal_map_rotates_outputs_only():
    weight = decaying(40, 40)
    before, after = spectrum_of(weight), spectrum_of(orthogonal(40, seed=9) @ weight)
    assert drift(before, after, float(weight.norm())) < 1e-8
    assert torch.rad2deg(angles(before.right, after.right)).max() < 1e-3
    assert torch.rad2deg(angles(before.left, after.left)).max() > 60


@given(size=st.floats(1e-4, 3), seed=st.integers(0, 99), tall=st.booleans())
@settings(max_examples=30, deadline=None)
def test_drift_is_bounded_by_the_relative_update(size, seed, tall):
    """Mirsky's inequality, in Frobenius and in spectral norm (Weyl)."""
    shape = (30, 20) if tall else (20, 30)
    weight, step = gaussian(*shape, seed=seed).double(), size * gaussian(*shape, seed=seed + 1).double()
    before, after = spectrum_of(weight), spectrum_of(weight + step)
    nss = drift(before, after, float(weight.norm()))
    assert nss <= float(step.norm() / weight.norm()) + 1e-9
    assert nss == pytest.approx(shift(weight, weight + step), rel=1e-5, abs=1e-9)
    spectral = np.linalg.norm(step.numpy(), 2)
    assert (after.values - before.values).abs().max() <= spectral + 1e-9


@given(size=st.floats(1e-4, 0.05), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_wedins_bound_holds_for_both_sides(size, seed):
    """||sin theta|| <= ||dW||_2 / gap, the gap between sigma_k of W0 and sigma_(k+1) of W1."""
    k = 4
    weight, step = decaying(30, 24, seed=seed), size * gaussian(30, 24, seed=seed).double()
    before, after = spectrum_of(weight, k=k), spectrum_of(weight + step, k=k)
    gap = float(before.values[k - 1] - after.values[k])
    if gap <= 0:
        return
    bound = np.linalg.norm(step.numpy(), 2) / gap
    for side in ("left", "right"):
        assert torch.sin(angles(getattr(before, side), getattr(after, side))).max() <= bound + 1e-6


def test_noise_has_its_size_and_is_the_same_on_every_reading():
    matrix = as_matrix(gaussian(300, 200))
    noisy = with_noise(matrix, 2.0, seed=3)
    (a, b), *_ = blocks(matrix.shape)
    assert torch.equal(noisy.rows(a, b), noisy.rows(a, b))
    assert float((noisy.rows(a, b) - matrix.rows(a, b)).norm()) == pytest.approx(2.0, rel=0.01)
