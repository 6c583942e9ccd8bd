import pytest
import torch
from golden_cases import assert_close, case_id, cases, family, tensor
from jaxtyping import TypeCheckError

from imgrl.anchor import VelocityAnchor, velocity_gap
from imgrl.flow import add_noise, mean_dims, velocity_target
from imgrl.objectives.image import AWM, Batch
from imgrl.objectives.image.awm import matching_log_prob
from imgrl.types import Noised

WEIGHTINGS = {"Uniform": "uniform", "t": "sigma", "t^2": "sigma_squared", "t**2": "sigma_squared"}


def batch_of(case, **velocities):
    clean, noise, sigma = (tensor(case[key], case["dtype"]) for key in ("x0", "noise", "sigma"))
    advantage = tensor(case["advantages"], case["dtype"])
    noised = Noised(
        clean=clean,
        noise=noise,
        sigma=sigma,
        noisy=add_noise(clean, noise, sigma),
        target=velocity_target(clean, noise),
    )
    group = torch.zeros(len(clean), dtype=torch.int64)
    return Batch(noised=noised, advantage=advantage, raw=advantage, group=group, **velocities)


@pytest.mark.parametrize("case", cases("awm_loss"), ids=case_id)
def test_loss_and_gradient_equal_flow_factorys(case):
    tolerance = family("awm_loss")["tolerance"]
    v, v_old, v_ref, v_ema = (
        tensor(case[f"v_{name}"], case["dtype"]) for name in ("theta", "old", "ref", "ema")
    )
    weighting = WEIGHTINGS.get(case["weighting"], case["weighting"])
    v.requires_grad_()
    batch = batch_of(case, current=v, old=v_old, anchor=v_ref)
    kind = {"weighting": weighting, "power": case["ghuber_power"]}
    target, sigma = batch.noised.target, batch.noised.sigma
    assert_close(matching_log_prob(v, target, sigma, **kind), case["log_prob"], tolerance)
    assert_close(matching_log_prob(v_old, target, sigma, **kind), case["log_prob_old"], tolerance)
    # Flow-Factory clips advantages and does not divide them, and holds the ratio's old policy and the trailing copy
    # apart; a clip of c here is c times smaller.
    low, high = case["adv_clip_range"]
    assert -low == high
    below, above = case["ratio_clip_range"]
    assert -below == above
    objective = AWM(
        **kind,
        ratio_clip=above,
        advantage_clip=high,
        trail=0.0,
        anchor=VelocityAnchor(weight=case["kl_beta"] / high, guidance=1.0, adaptive="none"),
    )
    total = high * objective.loss(batch).loss.mean()
    assert_close(high * objective.loss(batch).metrics["policy_loss"].mean(), case["policy_loss"], tolerance)
    if case["ema_kl_beta"]:
        trailing = AWM(**kind, ratio_clip=above, trail=case["ema_kl_beta"], anchor=VelocityAnchor(weight=0))
        trail = trailing.loss(batch_of(case, current=v, old=v_ema))
        assert_close(trail.metrics["trail_loss"] / case["ema_kl_beta"], case["ema_kl_per_sample"], tolerance)
        total = total + case["ema_kl_beta"] * velocity_gap(v, v_ema).mean()
    assert_close(total, case["total_loss"], tolerance)
    (gradient,) = torch.autograd.grad(total, v)
    assert_close(gradient, case["grad_v_theta"], tolerance)


def problem(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean, noise, v = torch.randn(3, n, 2, 3, generator=generator, dtype=torch.float64)
    sigma, advantage = torch.rand(2, n, generator=generator, dtype=torch.float64)
    noised = Noised(clean=clean, noise=noise, sigma=sigma, noisy=clean, target=velocity_target(clean, noise))
    group = torch.zeros(n, dtype=torch.int64)
    return Batch(
        current=v, old=v.clone(), noised=noised, advantage=advantage - 0.5, raw=advantage, group=group
    )


def test_first_gradient_is_advantage_weighted_flow_matching():
    # E12: at the old policy, A grad l for the uniform weighting; the division of A by its clip is ours
    batch = problem()
    batch.current.requires_grad_()
    objective = AWM(weighting="uniform", trail=0.0, anchor=VelocityAnchor(weight=0))
    (gradient,) = torch.autograd.grad(objective.loss(batch).loss.mean(), batch.current)
    errors = mean_dims((batch.current - batch.noised.target) ** 2)
    (expected,) = torch.autograd.grad((batch.advantage / 5 * errors).mean(), batch.current)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-16)


def test_a_ratio_beyond_the_clip_earns_nothing_more():
    batch = problem()
    better = batch.noised.target + 0.01  # every image is denoised far better than by the old copy
    for sign, moves in ((1.0, False), (-1.0, True)):
        moved = Batch(
            current=better.clone().requires_grad_(),
            old=batch.old,
            noised=batch.noised,
            advantage=torch.full_like(batch.advantage, sign),
            raw=batch.raw,
            group=batch.group,
        )
        objective = AWM(weighting="uniform", ratio_clip=1e-3, trail=0.0, anchor=VelocityAnchor(weight=0))
        (gradient,) = torch.autograd.grad(objective.loss(moved).loss.sum(), moved.current)
        assert bool(gradient.abs().sum() > 0) is moves


def test_wrong_settings_are_refused():
    for bad in ({"power": 0.0}, {"advantage_clip": 0.0}, {"ratio_clip": -1.0}, {"trail": -1.0}):
        with pytest.raises(ValueError, match="Expected AWM"):
            AWM(**bad)
    with pytest.raises((ValueError, TypeCheckError)):
        matching_log_prob(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), weighting="cubic")
