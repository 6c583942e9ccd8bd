import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from imgrl.objectives.text.phi import STEEPEST, phi, phi_slope

# The generators f(t) of the divergences D(p || q) = E_q f(p / q), as the literature gives them.
GENERATORS = {
    "pearson": lambda t: (t - 1) ** 2,
    "hellinger": lambda t: (math.sqrt(t) - 1) ** 2,
    "jensen_shannon": lambda t: t * math.log(t) - (1 + t) * math.log((1 + t) / 2),
    "kl": lambda t: t * math.log(t),
}
CURVED = ["pearson", "hellinger", "kl", "jensen_shannon"]
EVERY = ["total_variation", *CURVED]


def conjugate(f, y):
    # f*(y) = sup over t > 0 of t y - f(t), numerically.
    found = minimize_scalar(
        lambda log_t: f(math.exp(log_t)) - math.exp(log_t) * y,
        bounds=(-18, 7),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return -found.fun


@pytest.mark.parametrize("divergence", CURVED)
@pytest.mark.parametrize("x", [-0.55, -0.2, 0.0, 0.3, 0.9, 1.7])
def test_phi_is_minus_the_convex_conjugate_at_minus_x(divergence, x):
    expected = -conjugate(GENERATORS[divergence], -x)
    if divergence == "kl":  # -exp(-x - 1), rescaled to value 0 and slope 1 at 0
        expected = math.e * expected + 1
    assert phi(torch.tensor(x, dtype=torch.float64), divergence=divergence).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_the_total_variations_phi_is_the_identity_inside_its_box():
    # f(t) = |t - 1| / 2 has f*(y) = y for |y| <= 1/2: sup of t y - |t - 1| / 2 lies at the kink t = 1.
    for x in (-0.4, 0.2):
        assert -conjugate(lambda t: abs(t - 1) / 2, -x) == pytest.approx(x, abs=1e-6)
        assert phi(torch.tensor(x), divergence="total_variation").item() == pytest.approx(x)


@pytest.mark.parametrize("divergence", EVERY)
def test_at_zero_phi_is_zero_with_slope_one(divergence):
    zero = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(phi(zero, divergence=divergence), zero, rtol=0, atol=1e-15)
    torch.testing.assert_close(phi_slope(zero, divergence=divergence), zero + 1)


SLOPES = {
    "total_variation": lambda x: 1.0,
    "pearson": lambda x: 1 - x / 2,
    "hellinger": lambda x: (1 + x) ** -2,
    "kl": lambda x: math.exp(-x),
    "jensen_shannon": lambda x: math.exp(-x) / (2 - math.exp(-x)),
}


@given(x=st.floats(-0.65, 30))
def test_slopes_are_the_closed_forms(x):
    for divergence, slope in SLOPES.items():
        value = phi_slope(torch.tensor([x], dtype=torch.float64), divergence=divergence).item()
        assert value == pytest.approx(slope(x), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("divergence", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_slopes_are_finite_wherever_a_log_ratio_may_go(divergence, dtype):
    x = torch.linspace(-1e3, 1e3, 4001, dtype=dtype)
    slope = phi_slope(x, divergence=divergence)
    assert phi(x, divergence=divergence).isfinite().all() and slope.isfinite().all()
    assert (slope.diff() <= 1e-4).all()  # concave: the pull never grows as the policy rises
    if divergence != "pearson":
        assert slope.max() <= STEEPEST * 1.001 and slope.min() >= 0


@pytest.mark.parametrize("divergence", ["hellinger", "kl", "jensen_shannon"])
def test_below_the_guard_phi_goes_on_straight_and_still_pulls(divergence):
    x = torch.tensor([-50.0, -49.0], dtype=torch.float64)
    below, above = phi(x, divergence=divergence).tolist()
    assert above - below == pytest.approx(STEEPEST)


def test_the_guard_of_hellinger_lies_at_minus_nine_tenths():
    slope = phi_slope(torch.tensor([-0.89, -0.9, -0.91], dtype=torch.float64), divergence="hellinger")
    torch.testing.assert_close(slope.tolist(), [0.11**-2, 100.0, 100.0])


def test_an_unknown_divergence_is_refused():
    with pytest.raises((ValueError, TypeError), match="chi"):
        phi(torch.zeros(1), divergence="chi")
