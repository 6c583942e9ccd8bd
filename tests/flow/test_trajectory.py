"""Windows of random steps, and the exact Gaussian toy of D8: all maps are affine, so moments propagate exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from imgrl.flow import sigma_schedule
from imgrl.flow.trajectory import StochasticSampler, sample_path

MEAN, SD = 2.0, 0.5


def toy_velocity(x, t):
    """Exact velocity for data N(2, 1/4)."""
    weight = (t - (1 - t) * SD**2) / ((1 - t) ** 2 * SD**2 + t**2)
    return -MEAN + weight * (x - (1 - t) * MEAN)


def final_moments(sampler, sigmas, *, random):
    """Mean and deviation at the end, from the images of 0 and 1 under each affine step."""
    mean, variance = 0.0, 1.0
    for i in range(len(sigmas) - 1):
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        v = toy_velocity(x, float(sigmas[i]))
        if i in random:
            step = sampler.step(x, v, sigmas=sigmas, index=i, noise=torch.zeros_like(x))
            after, std = step.mean, float(step.std[0])
        else:
            after, std = x + (sigmas[i + 1] - sigmas[i]) * v, 0.0
        offset, slope = float(after[0]), float(after[1] - after[0])
        mean, variance = slope * mean + offset, slope**2 * variance + std**2
    return mean, variance**0.5


UNIFORM = {
    10: (0.43078, 0.47954, 0.35179),
    50: (0.48540, 0.49846, 0.38889),
    200: (0.49631, 0.50103, 0.39880),
    1000: (0.49926, 0.50092, 0.40267),
    4000: (0.49981, 0.50055, 0.40380),
}


@pytest.mark.parametrize("steps", UNIFORM)
def test_exact_final_deviation_on_a_uniform_grid(steps):
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    samplers = (None, StochasticSampler(kind="sde"), StochasticSampler(kind="cps"))
    for sampler, expected in zip(samplers, UNIFORM[steps], strict=True):
        mean, deviation = final_moments(sampler, sigmas, random=range(steps) if sampler else ())
        assert mean == pytest.approx(2.0, abs=1e-5)
        assert deviation == pytest.approx(expected, abs=6e-6)


def test_exact_final_deviation_on_sd3s_grid():
    sde, cps = StochasticSampler(kind="sde"), StochasticSampler(kind="cps")
    for steps, expected in (
        (10, (0.35916, 0.42102, 0.30767, 0.35906)),
        (40, (0.46452, 0.47941, 0.37067, 0.46451)),
    ):
        sigmas = sigma_schedule(steps).double()
        found = [
            final_moments(s, sigmas, random=random)[1]
            for s, random in ((None, ()), (sde, range(steps)), (cps, range(steps)), (cps, range(2)))
        ]
        assert found == pytest.approx(expected, abs=6e-6)
    assert final_moments(sde, sigma_schedule(10).double(), random=range(2))[1] == pytest.approx(
        0.38875, abs=6e-6
    )


@pytest.mark.parametrize(("kind", "expected"), [("sde", 0.38875), ("cps", 0.35906)])
def test_drawn_samples_have_these_moments(kind, expected):
    """SD3's grid of 10, the first two steps random; the standard errors are below 0.001."""
    sampler, sigmas = StochasticSampler(kind=kind, window=2), sigma_schedule(10).double()
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(3, 200_000, 1, generator=generator, dtype=torch.float64)
    path = sample_path(toy_velocity, noises[0], sigmas, sampler, start=0, noises=noises[1:])
    assert path.clean.mean().item() == pytest.approx(MEAN, abs=0.003)
    assert path.clean.std().item() == pytest.approx(expected, abs=0.003)


@given(
    steps=st.integers(4, 50),
    window=st.integers(1, 4),
    reach=st.floats(0.1, 1.0),
    seed=st.integers(0, 9),
)
def test_windows_stay_inside_their_range_or_are_refused(steps, window, reach, seed):
    sampler = StochasticSampler(window=window, reach=reach)
    last = min(round(reach * steps), steps - 1)
    if window > last:
        with pytest.raises(ValueError, match="does not fit"):
            sampler.count(steps)
        return
    start = sampler.start(steps, torch.Generator().manual_seed(seed))
    assert 0 <= start and start + sampler.count(steps) <= last
    assert start == sampler.start(steps, torch.Generator().manual_seed(seed))


def test_every_start_is_drawn_and_first_is_first():
    generator = torch.Generator().manual_seed(0)
    random = StochasticSampler(window=2)
    assert {random.start(10, generator) for _ in range(200)} == {0, 1, 2, 3}
    assert {StochasticSampler(window=2, placing="first").start(10, generator) for _ in range(20)} == {0}
    assert (StochasticSampler().start(10, generator), StochasticSampler().count(10)) == (0, 9)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"noise_level": 0.0}, "no density to train"),
        ({"kind": "cps", "noise_level": 1.5}, "for cps"),
        ({"window": 0}, "at least 1 step"),
        ({"reach": 0.0}, "reach"),
    ],
)
def test_wrong_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        StochasticSampler(**settings)


@pytest.mark.parametrize("settings", [{"kind": "ode"}, {"density": "sum"}, {"placing": "last"}])
def test_unknown_choices_are_refused(settings):
    with pytest.raises((ValueError, TypeCheckError)):
        StochasticSampler(**settings)
