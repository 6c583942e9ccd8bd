import pytest
import torch
from golden_cases import assert_close, case_id, cases, decline, family, tensor
from hypothesis import given
from hypothesis import strategies as st

from imgrl.anchor import VelocityAnchor, center, velocity_gap
from imgrl.flow import mean_dims, velocity_target
from imgrl.objectives.image import NFT, Batch, crd_target, nft_loss
from imgrl.types import Noised


@pytest.mark.parametrize("case", cases("nft_loss"), ids=case_id)
def test_loss_and_gradient_equal_diffusion_nfts(case):
    decline(case, "adv_mode_*")
    tolerance = family("nft_loss")["tolerance"]
    tolerance = dict(tolerance.get(case["dtype"], tolerance))
    if "weight_floor_active" in case.get("quirks", []):
        tolerance["rtol"] = 1e-6
    clean, noise, v, v_old, v_ref, xt, sigma, advantage = (
        tensor(case[key], case["dtype"])
        for key in ("x0", "noise", "v_theta", "v_old", "v_ref", "xt", "t", "advantages")
    )
    clip = case["adv_clip_max"]
    q = crd_target(advantage, clip=clip)
    assert_close(q, case["r"], tolerance)
    target = velocity_target(clean, noise)
    loss = nft_loss(v, v_old, target, sigma, q, beta=case["beta"], clip=clip)
    assert_close(loss / clip, case["policy_loss_per_sample"], tolerance)
    objective = NFT(
        beta=case["beta"],
        advantage_clip=clip,
        anchor=VelocityAnchor(weight=case["kl_weight"], guidance=1.0, adaptive="none"),
    )
    v.requires_grad_()
    batch = Batch(
        current=v,
        old=v_old,
        anchor=v_ref,
        noised=Noised(clean=clean, noise=noise, sigma=sigma, noisy=xt, target=target),
        advantage=advantage,
        raw=torch.zeros_like(advantage),
        group=torch.zeros(len(v), dtype=torch.int64),
    )
    out = objective.loss(batch)
    assert_close(out.metrics["policy_loss"].mean(), case["policy_loss"], tolerance)
    assert_close(out.loss.mean(), case["total_loss"], tolerance)
    assert_close(velocity_gap(v_old, v_ref).mean(), case["old_kl_mean"], tolerance)
    torch.testing.assert_close(out.metrics["old_gap"], velocity_gap(v, v_old).detach())
    (gradient,) = torch.autograd.grad(out.loss.mean(), v)
    assert_close(gradient, case["grad_v_theta"], tolerance)


def problem(seed=0, n=8):
    generator = torch.Generator().manual_seed(seed)
    v_old, target, delta = torch.randn(3, n, 2, 3, generator=generator, dtype=torch.float64)
    sigma, advantage = torch.rand(2, n, generator=generator, dtype=torch.float64)
    advantage = center(4 * advantage, torch.zeros(n, dtype=torch.int64))
    return v_old + delta, v_old, target, 0.1 + 0.8 * sigma, advantage


@given(seed=st.integers(0, 999), beta=st.floats(0.1, 3))
def test_expansion_into_matching_and_a_proximal_term(seed, beta):
    # E11 in velocity space: 5 / beta (q |v+ - u|^2 + (1 - q) |v- - u|^2) = 5 / beta e^2 + 2 A <D, e> + 5 beta D^2.
    # The loss divides each square by sigma-scaled sizes; undoing that division gives the plain squares back.
    v, v_old, target, sigma, advantage = problem(seed)
    q = crd_target(advantage)
    difference, error = v - v_old, v_old - target

    def plain(one):  # the squared velocity error of one side, read off the library's loss with q = 1 or 0
        side = nft_loss(v, v_old, target, sigma, torch.full_like(q, one), beta=beta) * beta / 5
        sign = 1 if one == 1 else -1
        size = mean_dims((error + sign * beta * difference).abs())
        return side * size / sigma

    left = 5 / beta * (q * plain(1.0) + (1 - q) * plain(0.0))
    right = 5 / beta * mean_dims(error**2) + 2 * advantage * mean_dims(difference * error)
    torch.testing.assert_close(left, right + 5 * beta * mean_dims(difference**2))


def test_first_gradient_is_advantage_weighted_flow_matching():
    # E12, self-normalised: A (sigma / mean_d |v_old - target|) grad l; an average image (A = 0, E11) pulls nowhere
    _, v_old, target, sigma, advantage = problem()
    for scale in (1.0, 0.0):
        v = v_old.clone().requires_grad_()
        loss = nft_loss(v, v_old, target, sigma, crd_target(scale * advantage), beta=0.3)
        (gradient,) = torch.autograd.grad(loss.mean(), v)
        weight = scale * advantage * sigma / mean_dims((v_old - target).abs())
        (expected,) = torch.autograd.grad((weight * mean_dims((v - target) ** 2)).mean(), v)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-15)


def test_only_the_policy_has_a_gradient_and_old_is_needed():
    v, v_old, target, sigma, advantage = problem()
    leaves = [x.clone().requires_grad_() for x in (v, v_old, target)]
    nft_loss(*leaves, sigma, crd_target(advantage)).sum().backward()
    assert leaves[0].grad is not None and leaves[1].grad is None and leaves[2].grad is None
    noised = Noised(clean=target, noise=target, sigma=sigma, noisy=target, target=target)
    group = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(ValueError, match="Batch.old"):
        NFT().loss(Batch(current=v, noised=noised, advantage=advantage, raw=advantage, group=group))


def test_wrong_settings_are_refused():
    for bad in ({"beta": 0.0}, {"advantage_clip": 0.0}):
        with pytest.raises(ValueError, match="> 0"):
            NFT(**bad)
