"""Identities D4, D5 and D10 to D12 of the policy gradient on sampling steps, and recorded numbers."""

import dataclasses

import pytest
import torch
from golden_cases import assert_close, case_id, cases, family, tensor
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from imgrl.anchor import VelocityAnchor, transition_gap
from imgrl.flow import StochasticSampler, mean_dims, sample_path, sde_step, sigma_schedule
from imgrl.objectives.image import GRPO, Batch
from imgrl.objectives.image.grpo import divergence_mask, guarded_log_ratio
from imgrl.objectives.surrogate import clipped_surrogate
from imgrl.types import Transition


@pytest.mark.parametrize("case", cases("kl_transition"), ids=case_id)
def test_policy_loss_and_kl_equal_flow_grpos(case):
    tolerance = family("kl_transition")["tolerance"]
    sigmas, index = tensor(case["sigmas"]), torch.tensor(case["step_index"])
    x, v, v_ref, v_old, after = (
        tensor(case[name]) for name in ("x", "v_theta", "v_ref", "v_old", "prev_sample")
    )
    v.requires_grad_()
    levels = {
        "sigma": sigmas[index],
        "sigma_next": sigmas[index + 1],
        "sigma_second": sigmas[1],
        "noise_level": case["noise_level"],
        "sample": after,
    }
    step, old, anchor = (sde_step(x, field, **levels) for field in (v, v_old, v_ref))
    assert_close(step.mean, case["mean"], tolerance["mean"])
    assert_close(step.log_prob, case["log_prob"], tolerance["log_prob"])
    assert_close(old.log_prob, case["log_prob_old"], tolerance["log_prob"])
    log_ratio = step.log_prob - old.log_prob.detach()
    assert_close(log_ratio.exp(), case["ratio"], tolerance["ratio"])
    clip, limit = case["clip_range"], case["adv_clip_max"]
    advantage = tensor(case["advantages"]).clamp(-limit, limit)
    policy = clipped_surrogate(log_ratio, advantage, low=clip, high=clip).mean()
    assert_close(policy, case["policy_loss"], tolerance["loss"])
    total = policy
    if case["kl_weight"]:
        gap = transition_gap(step.mean, anchor.mean, std=step.std)
        # What the originals leave out of the exact KL: -dt (flow_grpo), the whole denominator (adv_grpo).
        factor = -tensor(case["dt"]) if case["variant"] == "flow_grpo" else 2 * step.std**2
        assert_close(gap * factor, case["kl_per_sample"], tolerance["kl"])
        total = policy + case["kl_weight"] * (gap * factor).mean()
    assert_close(total, case["total_loss"], tolerance["loss"])
    (gradient,) = torch.autograd.grad(total, v)
    assert_close(gradient, case["grad_v_theta"], tolerance["grad"])


def field(x, sigma):
    """A velocity that depends on the state, cheap and smooth."""
    return torch.tanh(x) * (1 + sigma) - 0.3


def rollout(sampler, steps=6, n=8, start=0, seed=0, keep_mean=True):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(1 + sampler.count(steps), n, 3, 4, 4, generator=generator)
    sigmas = sigma_schedule(steps)
    return sample_path(field, draws[0], sigmas, sampler, start=start, noises=draws[1:], keep_mean=keep_mean)


def transition(path, level):
    return Transition(
        state=path.states[level],
        after=path.states[level + 1],
        log_prob=path.log_prob[level],
        mean=None if path.mean is None else path.mean[level],
        sigmas=path.sigmas,
        index=path.start + level,
    )


def batch_of(point, v, advantage, anchor=None):
    group = torch.zeros(len(v), dtype=torch.int64)
    return Batch(current=v, anchor=anchor, transition=point, advantage=advantage, raw=advantage, group=group)


KINDS = ("sde", "dance", "cps")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 2])
def test_replaying_a_rollout_gives_its_log_densities(kind, window):
    # D4: from the stored states, with the weights that drew them
    sampler = StochasticSampler(kind=kind, window=window)
    path = rollout(sampler, start=0 if window is None else 1)
    for level in range(sampler.count(6)):
        point = transition(path, level)
        v = field(point.state, path.sigmas[point.index])
        again = sampler.step(point.state, v, sigmas=path.sigmas, index=point.index, sample=point.after)
        torch.testing.assert_close(again.log_prob, point.log_prob, rtol=0, atol=1e-7)
        torch.testing.assert_close(again.mean, point.mean, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", ["plain", "guard"])
def test_the_first_gradient_is_advantage_times_score(kind, ratio):
    # D5: at ratio 1 clipping is idle; an advantage of 0 gives exactly 0
    sampler = StochasticSampler(kind=kind)
    point = transition(rollout(sampler), 2)
    v = field(point.state, point.sigmas[point.index]).requires_grad_()
    advantage = torch.linspace(-1, 1, 8)
    advantage[3] = 0.0
    out = GRPO(sampler=sampler, ratio=ratio, clip=1e-5).loss(batch_of(point, v, advantage))
    (gradient,) = torch.autograd.grad(out.loss.sum(), v)
    step = sampler.step(point.state, v, sigmas=point.sigmas, index=point.index, sample=point.after)
    scale = torch.ones(8)
    if ratio == "guard":  # the exponent is mean(z D): std times the Gaussian log-ratio's gradient at D = 0
        scale = step.std.detach() if sampler.log_density == "gaussian" else 1 / (2 * step.std.detach())
    (expected,) = torch.autograd.grad((-advantage * scale * step.log_prob).sum(), v)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-9)
    assert gradient[3].abs().max() == 0


@pytest.mark.parametrize("density", ["gaussian", "unnormalised"])
def test_guard_leaves_only_the_noise_times_the_move(density):
    # D11: s (log r + mean(D^2) / (2 s^2)) = mean(z D), for x' = mean_old + s z
    generator = torch.Generator().manual_seed(1)
    z, delta, mean_old = torch.randn(3, 5, 2, 3, generator=generator, dtype=torch.float64)
    std = torch.rand(5, generator=generator, dtype=torch.float64) + 0.1
    mean = mean_old + 0.01 * delta
    after = mean_old + std.view(-1, 1, 1) * z

    def log_density(center):
        squared = -((after - center) ** 2)
        return mean_dims(squared / (2 * std.view(-1, 1, 1) ** 2) if density == "gaussian" else squared)

    exponent = guarded_log_ratio(
        log_density(mean) - log_density(mean_old), mean, mean_old, std, normalised=density == "gaussian"
    )
    torch.testing.assert_close(exponent, mean_dims(z * 0.01 * delta), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 4, 64])
def test_bias_of_mean_log_ratios(dims):
    # D12: D = delta s everywhere gives E exp(mean log r) = exp(-delta^2 / 2 (1 - 1 / dims)), here by exact integration
    # over mean(z) ~ Normal(0, 1 / dims)
    delta = 0.05
    nodes = torch.linspace(-10, 10, 20001, dtype=torch.float64) / dims**0.5
    weights = torch.softmax(-(nodes**2) * dims / 2, 0)
    ratio = (delta * nodes - delta**2 / 2).exp()
    expected = torch.tensor(-(delta**2) / 2 * (1 - 1 / dims), dtype=torch.float64).exp()
    torch.testing.assert_close((weights * ratio).sum(), expected, rtol=1e-9, atol=0)
    # ... and the exponent without that bias is what guard computes from such a sample
    z = nodes[::1000].view(-1, 1).expand(-1, dims)
    old = torch.zeros_like(z)
    std = torch.full((len(z),), 0.3, dtype=torch.float64)
    log_ratio = mean_dims(delta * z - delta**2 / 2)
    guarded = guarded_log_ratio(log_ratio, old + delta * 0.3, old, std)
    torch.testing.assert_close(guarded, mean_dims(z) * delta * 0.3)


def test_transition_kl_is_that_of_two_gaussians():
    # D10: against Monte Carlo, and 0 only at equal means
    generator = torch.Generator().manual_seed(2)
    mean, other = torch.randn(2, 1, 4, generator=generator, dtype=torch.float64)
    std = 0.7
    exact = transition_gap(mean, other, std=std)
    draws = mean + std * torch.randn(400_000, 4, generator=generator, dtype=torch.float64)
    sampled = (((draws - other) ** 2 - (draws - mean) ** 2) / (2 * std**2)).mean()
    assert sampled.item() == pytest.approx(exact.item(), rel=0.02)
    assert transition_gap(mean, mean, std=std).item() == 0


@pytest.mark.parametrize("kl", ["velocity", "transition"])
def test_the_anchor_pulls_in_the_space_that_was_asked_for(kl):
    sampler = StochasticSampler()
    point = transition(rollout(sampler), 1)
    v = field(point.state, point.sigmas[point.index])
    anchor = v + 0.1
    objective = GRPO(sampler=sampler, kl=kl, anchor=VelocityAnchor(weight=0.5, adaptive="none"))
    out = objective.loss(batch_of(point, v, torch.zeros(8), anchor))
    if kl == "velocity":
        expected = torch.full((8,), 0.5 * 0.01)
    else:
        sigma, after = (float(point.sigmas[point.index + k]) for k in (0, 1))
        diffusion, dt = 0.7 * (sigma / (1 - sigma)) ** 0.5, after - sigma
        # A.7: KL = (-dt) / 2 (1 / diffusion + diffusion (1 - sigma) / (2 sigma))^2 |dv|^2
        factor = -dt / 2 * (1 / diffusion + diffusion * (1 - sigma) / (2 * sigma)) ** 2
        expected = torch.full((8,), 0.5 * factor * 0.01)
    torch.testing.assert_close(out.metrics["anchor_loss"], expected, rtol=1e-4, atol=1e-8)


def test_far_samples_lose_their_outward_gradient_only():
    log_ratio = torch.tensor([0.1, -0.1, 0.1, -0.1, 0.1])
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    divergence = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.5])
    mask = divergence_mask(log_ratio, advantage, divergence, limit=1.0)
    assert mask.tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize("ratio", ["plain", "guard"])
def test_the_loss_holds_back_what_is_far_and_would_go_on(ratio):
    """Half the rows move far, with advantages of both signs; the clip is too wide to do the mask's work."""
    sampler = StochasticSampler()
    point = transition(rollout(sampler, n=64), 2)
    far = torch.arange(64) % 2 == 0
    direction = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    moved = torch.where(far, 0.1, 0.001).view(-1, 1, 1, 1) * direction
    v = (field(point.state, point.sigmas[point.index]) + moved).requires_grad_()
    advantage = torch.where(torch.arange(64) % 4 < 2, 1.0, -1.0)
    # A.7: KL = factor |dv|^2, about 1e-2 factor for the far rows and 1e-6 factor for the near
    sigma, after = (float(point.sigmas[point.index + k]) for k in (0, 1))
    diffusion = 0.7 * (sigma / (1 - sigma)) ** 0.5
    factor = (sigma - after) / 2 * (1 / diffusion + diffusion * (1 - sigma) / (2 * sigma)) ** 2
    objective = GRPO(sampler=sampler, ratio=ratio, clip=10.0, divergence_limit=1e-4 * factor)
    out = objective.loss(batch_of(point, v, advantage))
    (gradient,) = torch.autograd.grad(out.loss.sum(), v)
    # outward: the sample has become more likely and is wanted, or less likely and is not; the density by torch
    normal = torch.distributions.Normal(point.mean, diffusion * (sigma - after) ** 0.5)
    before = normal.log_prob(point.after).mean((1, 2, 3))
    shift = -(sigma - after) * (1 + diffusion**2 * (1 - sigma) / (2 * sigma)) * moved
    now = torch.distributions.Normal(point.mean + shift, normal.scale).log_prob(point.after).mean((1, 2, 3))
    held = far & ((now - before) * advantage > 0)
    assert held[advantage > 0].any() and held[advantage < 0].any() and (far & ~held).any()
    assert ((gradient == 0).flatten(1).all(1) == held).all()
    assert (
        torch.equal(out.metrics["held"], held.float()) and out.metrics["policy_loss"][held].abs().max() == 0
    )


@given(low=st.floats(0, 0.5), high=st.floats(0, 0.5), log_ratio=st.floats(-1, 1), advantage=st.floats(-3, 3))
def test_the_surrogate_is_pessimistic_and_flat_beyond_its_clip(low, high, log_ratio, advantage):
    exponent = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
    loss = clipped_surrogate(exponent, torch.tensor(advantage, dtype=torch.float64), low=low, high=high)
    ratio = exponent.exp()
    assert loss >= -advantage * ratio - 1e-12
    loss.backward()
    beyond = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)
    expected = 0.0 if beyond or advantage == 0 else -advantage * ratio.item()
    assert exponent.grad.item() == pytest.approx(expected, abs=1e-12)


def test_wrong_settings_and_batches_are_refused():
    for bad, sentence in (
        ({"clip": 0.0}, "clip"),
        ({"advantage_clip": 0.0}, "clip"),
        ({"divergence_limit": 0.0}, "divergence_limit"),
    ):
        with pytest.raises(ValueError, match=sentence):
            GRPO(**bad)
    for bad in ({"ratio": "sum"}, {"kl": "none"}):
        with pytest.raises((ValueError, TypeCheckError)):
            GRPO(**bad)
    sampler = StochasticSampler()
    point = transition(rollout(sampler, keep_mean=False), 0)
    v = field(point.state, 1.0)
    with pytest.raises(ValueError, match=r"Transition\.mean"):
        GRPO(sampler=sampler, ratio="guard").loss(batch_of(point, v, torch.zeros(8)))
    with pytest.raises(ValueError, match="either noised points or transitions"):
        dataclasses.replace(batch_of(point, v, torch.zeros(8)), transition=None)
    path = rollout(sampler)
    with pytest.raises(ValueError, match="last step has no density"):
        sample_path(field, path.clean, path.sigmas, sampler, start=1, noises=[path.clean] * 5)
