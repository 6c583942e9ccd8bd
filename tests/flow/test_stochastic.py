import pytest
import torch
from golden_cases import assert_close, case_id, cases, family, tensor
from torch.distributions import Normal

from imgrl.flow import cps_step, dance_step, euler_step, sde_step, sigma_schedule


def run(case, step, v):
    given = {"sigma": tensor(case["sigma"]), "sigma_next": tensor(case["sigma_next"])}
    if step is sde_step:
        given["sigma_second"] = case["sigma_second"]
    return step(
        tensor(case["x"]), v, noise_level=case["noise_level"], sample=tensor(case["prev_sample"]), **given
    )


@pytest.mark.parametrize(
    ("name", "step", "case"),
    [(n, s, c) for n, s in (("flow_sde", sde_step), ("cps_step", cps_step)) for c in cases(n)],
    # A function's address differs between processes.
    ids=lambda value: "" if callable(value) else case_id(value),
)
def test_step_equals_the_recorded_one(name, step, case):
    tolerance = family(name)["tolerance"]
    v = tensor(case["v"]).requires_grad_()
    out = run(case, step, v)
    assert_close(out.mean, case["mean"], tolerance["mean"])
    assert_close(out.std, case["step_std"], tolerance["std"])
    if "noise0_log_prob_not_finite" in case.get("quirks", []):
        assert out.log_prob.isnan().all()  # no density exists; here it is NaN too
        return
    assert_close(out.log_prob, case["log_prob"], tolerance["log_prob"])
    if case.get("grad_sum_log_prob_wrt_v") is not None:
        (gradient,) = torch.autograd.grad(out.log_prob.sum(), v)
        key = next((k for k in tolerance if k.startswith("grad")), "log_prob")
        assert_close(gradient, case["grad_sum_log_prob_wrt_v"], tolerance[key])
    if case.get("z") is not None:
        given = {"sigma_second": case["sigma_second"]} if step is sde_step else {}
        drawn = step(
            tensor(case["x"]),
            tensor(case["v"]),
            sigma=tensor(case["sigma"]),
            sigma_next=tensor(case["sigma_next"]),
            noise_level=case["noise_level"],
            noise=tensor(case["z"]),
            **given,
        )
        assert_close(drawn.sample, case["prev_sample"], tolerance["mean"])


def arguments(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x, v, z = torch.randn(3, 2, 3, 4, generator=generator, dtype=dtype)
    return x, v, z, {"sigma": 0.8, "sigma_next": 0.6}


def test_log_density_is_torchs_normal():
    x, v, z, levels = arguments()
    out = sde_step(x, v, noise=z, noise_level=0.7, sigma_second=0.9, **levels)
    expected = Normal(out.mean, out.std[:, None, None]).log_prob(out.sample).mean((1, 2))
    torch.testing.assert_close(out.log_prob, expected)
    out = cps_step(x, v, noise=z, noise_level=0.7, density="gaussian", **levels)
    expected = Normal(out.mean, out.std[:, None, None]).log_prob(out.sample).mean((1, 2))
    torch.testing.assert_close(out.log_prob, expected)


@pytest.mark.parametrize("noise_level", [0.3, 0.7, 1.0])
def test_first_step_has_exactly_the_noise_level(noise_level):
    sigmas = sigma_schedule(10)
    x, v, z, _ = arguments(torch.float32)
    out = sde_step(
        x,
        v,
        sigma=sigmas[0],
        sigma_next=sigmas[1],
        sigma_second=sigmas[1],
        noise_level=noise_level,
        noise=z,
    )
    torch.testing.assert_close(out.std, torch.full((2,), noise_level), rtol=1e-6, atol=0)


def test_no_noise_is_eulers_step():
    x, v, z, levels = arguments()
    expected = euler_step(x, v, **levels)
    torch.testing.assert_close(
        sde_step(x, v, noise=z, noise_level=0.0, sigma_second=0.9, **levels).sample, expected
    )
    torch.testing.assert_close(cps_step(x, v, noise=z, noise_level=0.0, **levels).sample, expected)


@pytest.mark.parametrize("place", [0, 4, 9], ids=["first", "middle", "last"])
def test_without_noise_every_sampler_takes_x_plus_v_dt_at_every_place_of_the_schedule(place):
    sigmas = sigma_schedule(10)
    here, after = sigmas[place].item(), sigmas[place + 1].item()
    x, v, z, _ = arguments(torch.float32)
    expected = x + v * (after - here)
    levels = {"sigma": here, "sigma_next": after, "noise": z, "noise_level": 0.0}
    sde = sde_step(x, v, sigma_second=sigmas[1], **levels).sample
    for sample in (sde, cps_step(x, v, **levels).sample, dance_step(x, v, **levels).sample):
        torch.testing.assert_close(sample, expected, rtol=1e-6, atol=2e-6)


def test_small_sde_steps_keep_the_marginal():
    # Data N(0, 0.5^2) in one dimension: at every level the state has variance (1 - t)^2 / 4 + t^2.
    # Each step is linear in x, so the variance is carried exactly, without sampling.
    sigmas = torch.linspace(0.99, 0.01, 4001, dtype=torch.float64)
    variance = ((1 - sigmas[0]) * 0.5) ** 2 + sigmas[0] ** 2
    one = torch.ones(1, 1, dtype=torch.float64)
    for t, t_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2)
        step = sde_step(
            one, slope * one, sigma=t, sigma_next=t_next, sigma_second=t, noise_level=0.7, sample=one
        )
        variance = step.mean.item() ** 2 * variance + step.std.item() ** 2
    assert variance.sqrt().item() == pytest.approx(((0.99 * 0.5) ** 2 + 0.01**2) ** 0.5, rel=2e-3)


def test_sample_carries_no_gradient_and_exactly_one_source_is_needed():
    x, v, z, levels = arguments()
    out = cps_step(x, v.requires_grad_(), noise=z, **levels)
    assert not out.sample.requires_grad and out.log_prob.requires_grad
    for wrong in ({}, {"noise": z, "sample": z}):
        with pytest.raises(ValueError, match="either noise"):
            cps_step(x, v, **levels, **wrong)
