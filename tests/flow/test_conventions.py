import pytest
import torch
from golden_cases import assert_close, case_id, cases, family
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from imgrl.flow import (
    add_noise,
    full_precision,
    guided,
    mean_dims,
    predict_clean,
    predict_noise,
    shift_sigma,
    sigma_schedule,
    velocity_target,
)


@pytest.mark.parametrize("case", cases("sigma_schedules"), ids=case_id)
def test_schedule_equals_diffusers(case):
    sigmas = sigma_schedule(
        case["num_steps"],
        shift=case["shift"],
        kind=case["kind"],
        num_train_timesteps=case["num_train_timesteps"],
    )
    assert sigmas.dtype == torch.float32
    assert_close(sigmas, case["sigmas"], family("sigma_schedules")["tolerance"])
    times = {"rtol": 1e-6, "atol": 1e-3}  # the same tolerance on the scale of 1000
    assert_close(sigmas[:-1] * 1000, case["timesteps"], times)


@given(steps=st.integers(1, 60), shift=st.floats(0.5, 8.0), kind=st.sampled_from(["default", "explicit"]))
def test_schedule_falls_from_one_to_zero(steps, shift, kind):
    sigmas = sigma_schedule(steps, shift=shift, kind=kind)
    assert len(sigmas) == steps + 1 and sigmas[0] == 1 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@given(sigma=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_predictions_undo_noising(sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
    x, v = add_noise(clean, noise, sigma), velocity_target(clean, noise)
    torch.testing.assert_close(predict_clean(x, v, sigma), clean)
    torch.testing.assert_close(predict_noise(x, v, sigma), noise)


def test_ends_of_the_path_by_hand():
    clean, noise = torch.full((2, 3), 4.0), torch.full((2, 3), 10.0)
    assert torch.equal(add_noise(clean, noise, 0.0), clean)
    assert torch.equal(add_noise(clean, noise, 1.0), noise)
    # sigma per sample: 0.5 -> (4 + 10) / 2 = 7 and 0.25 -> 0.75 * 4 + 0.25 * 10 = 5.5
    levels = add_noise(clean, noise, torch.tensor([0.5, 0.25]))
    assert levels[:, 0].tolist() == [7.0, 5.5]
    assert torch.equal(velocity_target(clean, noise), torch.full((2, 3), 6.0))  # noise - clean


def test_shift_by_hand():
    # 3 * 0.5 / (1 + 2 * 0.5) = 0.75
    assert shift_sigma(torch.tensor(0.5), shift=3.0).item() == 0.75
    with pytest.raises(ValueError, match="positive shift"):
        shift_sigma(torch.tensor(0.5), shift=0.0)


def test_sd3s_ten_levels():
    # Recorded from SD3.5's scheduler at ten steps.
    levels = [1, 0.96013, 0.91335, 0.85769, 0.79037, 0.70728, 0.60215, 0.46488, 0.27805, 0.00893, 0]
    torch.testing.assert_close(sigma_schedule(10, shift=3.0), torch.tensor(levels), rtol=0, atol=1e-5)


@given(t=st.floats(0.01, 1), x=st.floats(-3, 5))
def test_a_velocity_contains_the_score(t, x):
    """Data N(2, 1/4): ``-(x + (1 - t) v) / t`` is the derivative of the noised density's logarithm."""
    variance = (1 - t) ** 2 / 4 + t**2
    velocity = -2 + (t - (1 - t) / 4) / variance * (x - (1 - t) * 2)
    noise = predict_noise(*torch.tensor([[[x]], [[velocity]]], dtype=torch.float64), t)
    assert -noise.item() / t == pytest.approx(-(x - (1 - t) * 2) / variance, abs=1e-9, rel=1e-9)


def test_guidance_by_hand():
    cond, uncond = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    assert guided(cond, uncond, scale=4.5).item() == 10.0  # 1 + 4.5 * 2
    assert torch.equal(guided(cond, uncond, scale=1.0), cond)
    assert torch.equal(guided(cond, uncond, scale=0.0), uncond)


def test_mean_dims_is_a_mean_per_sample():
    x = torch.arange(12.0).view(2, 3, 2)
    assert mean_dims(x).tolist() == [2.5, 8.5]  # means of 0..5 and 6..11


def test_full_precision_lifts_half_and_keeps_double():
    assert full_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert full_precision(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_broadcasting_is_refused():
    clean, noise = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    with pytest.raises((ValueError, TypeCheckError)):
        add_noise(clean, noise, 0.5)
    with pytest.raises(ValueError, match="one per sample"):
        add_noise(clean, clean, torch.full((3,), 0.5))


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 4, "shift": -1.0}])
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(ValueError, match="Expected"):
        sigma_schedule(**bad)
    with pytest.raises((ValueError, TypeCheckError)):
        sigma_schedule(4, kind="karras")
