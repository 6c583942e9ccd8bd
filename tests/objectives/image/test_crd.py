import pytest
import torch
from golden_cases import assert_close, case_id, cases, decline, family, tensor
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from imgrl.anchor import VelocityAnchor, center, denoising_gain
from imgrl.flow import add_noise, guided, mean_dims, velocity_target
from imgrl.objectives.image import CRD, Batch, crd_loss, crd_target
from imgrl.types import Noised


def settings(case):
    low, high = case["adv_clip_range"]
    assert low == -high
    return {
        "beta": case["crd_beta"],
        "kind": case["loss_type"],
        "adaptive": case["adaptive_logp"],
        "temperature": None if case["weight_temp"] < 0 else case["weight_temp"],
        "clip": high,
    }


@pytest.mark.parametrize("case", cases("crd_loss"), ids=case_id)
def test_policy_loss_equals_flow_factorys(case):
    decline(case, "centering_spans_groups", "weight_temp_zero_degenerate")
    tolerance = dict(family("crd_loss")["tolerance"][case["dtype"]])
    if "weight_floor_active" in case.get("quirks", []):
        tolerance["rtol"] = 1e-6
    value = {key: tensor(case[key], case["dtype"]) for key in ("v_theta", "v_old", "v_target", "advantages")}
    v, group = value["v_theta"].requires_grad_(), torch.tensor(case["group_id"])
    options = settings(case)
    q = crd_target(value["advantages"], clip=options["clip"])
    assert_close(q, case["q"], tolerance)
    gain = denoising_gain(v, value["v_old"], value["v_target"], adaptive=options["adaptive"])
    assert_close(gain, case["implicit_reward"], tolerance)
    loss = crd_loss(v, value["v_old"], value["v_target"], q, group, **options).mean()
    assert_close(loss, case["policy_loss"], tolerance)
    if case.get("grad_policy_wrt_v_theta") is not None:
        (gradient,) = torch.autograd.grad(loss, v)
        assert_close(gradient, case["grad_policy_wrt_v_theta"], tolerance)


@pytest.mark.parametrize("case", cases("crd_loss"), ids=case_id)
def test_total_loss_and_gradient_equal_flow_factorys(case):
    decline(
        case,
        "centering_spans_groups",
        "weight_temp_zero_degenerate",
        "kl_cfg_le_1_uses_train_guidance",
        "kl_beta_below_1e-4_inverts",
    )
    tolerance = dict(family("crd_loss")["tolerance"][case["dtype"]])
    if "weight_floor_active" in case.get("quirks", []):
        tolerance["rtol"] = 1e-6
    options = settings(case)
    objective = CRD(
        beta=options["beta"],
        regression=options["kind"],
        adaptive=options["adaptive"],
        temperature=options["temperature"],
        advantage_clip=options["clip"],
        anchor=VelocityAnchor(
            weight=case["kl_beta"],
            guidance=case["kl_cfg"],
            # Flow-Factory's strength follows the clipped advantage; the default here is the raw reward.
            adaptive="advantage" if case["reward_adaptive_kl"] else "none",
        ),
    )
    value = {k: tensor(case[k], case["dtype"]) for k in case if k.startswith("v_") and k != "v_anchor"}
    clean, noise, sigma = (tensor(case[key], case["dtype"]) for key in ("x0", "noise", "sigma"))
    v = value["v_theta"].requires_grad_()
    advantage = tensor(case["advantages"], case["dtype"])
    noisy = add_noise(clean, noise, sigma)
    batch = Batch(
        current=v,
        old=value["v_old"],
        anchor=guided(value["v_ref_cond"], value["v_ref_uncond"], scale=case["kl_cfg"]),
        noised=Noised(
            clean=clean, noise=noise, sigma=sigma, noisy=noisy, target=velocity_target(clean, noise)
        ),
        advantage=advantage,
        raw=torch.full_like(advantage, torch.nan),  # must not be looked at
        group=torch.tensor(case["group_id"]),
    )
    out = objective.loss(batch)
    assert out.loss.shape == advantage.shape
    assert_close(out.loss.mean(), case["total_loss"], tolerance)
    assert_close(out.metrics["policy_loss"].mean(), case["policy_loss"], tolerance)
    assert_close(out.metrics["anchor_loss"].mean(), case["kl_loss"], tolerance)
    assert not any(metric.requires_grad for metric in out.metrics.values())
    if case.get("grad_total_wrt_v_theta") is not None:
        (gradient,) = torch.autograd.grad(out.loss.mean(), v)
        assert_close(gradient, case["grad_total_wrt_v_theta"], tolerance)


def problem(seed=0, groups=3, size=4, shift=0.5):
    """Velocities, advantages of zero mean in each group, and group numbers."""
    generator = torch.Generator().manual_seed(seed)
    n = groups * size
    v_old, target, delta = torch.randn(3, n, 2, 3, generator=generator, dtype=torch.float64)
    group = torch.arange(n) % groups
    advantage = center(torch.randn(n, generator=generator, dtype=torch.float64), group)
    return v_old + shift * delta, v_old, target, advantage, group


def test_target_by_hand():
    # clip at 5, one standard deviation is a tenth: 0 -> .5, 1 -> .6, 9 -> 1, -9 -> 0
    q = crd_target(torch.tensor([0.0, 1.0, 9.0, -9.0]))
    torch.testing.assert_close(q, torch.tensor([0.5, 0.6, 1.0, 0.0]))


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_first_gradient_is_advantage_weighted_flow_matching(beta, adaptive):
    # E9: at v = v_old the gradient is mean_i A_i grad l_i (over w_i if adaptive), whatever beta is
    _, v_old, target, advantage, group = problem()
    v = v_old.clone().requires_grad_()
    loss = crd_loss(v, v_old, target, crd_target(advantage), group, beta=beta, adaptive=adaptive)
    (gradient,) = torch.autograd.grad(loss.mean(), v)
    weight = mean_dims((v_old - target).abs()) if adaptive else torch.ones(len(v), dtype=torch.float64)
    matching = (advantage / weight * mean_dims((v - target) ** 2)).mean()
    (expected,) = torch.autograd.grad(matching, v)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-16)


@given(seed=st.integers(0, 999), beta=st.floats(0.1, 10))
def test_loss_is_weighted_matching_plus_the_variance_of_the_gain(seed, beta):
    # E10: L = const + mean_i A_i mean_d(2 D e + D^2) + 5 beta Var_group(R), D = v - v_old, e = v_old - target
    v, v_old, target, advantage, group = problem(seed)
    loss = crd_loss(v, v_old, target, crd_target(advantage), group, beta=beta, adaptive=False).mean()
    at_old = crd_loss(v_old, v_old, target, crd_target(advantage), group, beta=beta, adaptive=False).mean()
    difference, error = v - v_old, v_old - target
    matching = (advantage * mean_dims(2 * difference * error + difference**2)).mean()
    gain = -mean_dims((v - target) ** 2 - (v_old - target) ** 2)
    variance = torch.stack([gain[group == g].var(correction=0) for g in range(3)]).mean()
    torch.testing.assert_close(loss - at_old, matching + 5 * beta * variance)


@pytest.mark.parametrize("adaptive", [True, False])
def test_loss_at_the_old_copy_is_the_variance_of_the_target(adaptive):
    # E21: R = 0 and L = 5 / beta Var(q)
    _, v_old, target, advantage, group = problem(groups=1, size=8)
    q = crd_target(advantage)
    loss = crd_loss(v_old, v_old, target, q, group, beta=0.5, adaptive=adaptive).mean()
    torch.testing.assert_close(loss, 5 / 0.5 * q.var(correction=0))


def batch(v, v_old, target, advantage, group, **changes):
    noise = torch.zeros_like(target)
    noised = Noised(
        clean=-target, noise=noise, sigma=torch.full_like(advantage, 0.5), noisy=-target / 2, target=target
    )
    raw = torch.full_like(advantage, 0.5)
    return Batch(
        **({"current": v, "old": v_old, "anchor": v_old, "noised": noised} | changes),
        advantage=advantage,
        raw=raw,
        group=group,
    )


def test_only_the_policy_has_a_gradient():
    v, v_old, target, advantage, group = problem()
    leaves = [x.clone().requires_grad_() for x in (v, v_old, v_old)]
    out = CRD().loss(batch(leaves[0], leaves[1], target, advantage, group, anchor=leaves[2]))
    out.loss.sum().backward()
    assert leaves[0].grad is not None and leaves[1].grad is None and leaves[2].grad is None


def test_a_prompts_images_do_not_depend_on_other_prompts():
    v, v_old, target, advantage, group = problem()
    loss = CRD().loss(batch(v, v_old, target, advantage, group)).loss
    mine = group == 1
    alone = batch(v[mine], v_old[mine], target[mine], advantage[mine], group[mine])
    torch.testing.assert_close(CRD().loss(alone).loss, loss[mine])


def test_permuting_images_and_duplicating_groups_changes_nothing():
    v, v_old, target, advantage, group = problem()
    loss = CRD().loss(batch(v, v_old, target, advantage, group)).loss
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    moved = batch(*(x[order] for x in (v, v_old, target, advantage, group)))
    torch.testing.assert_close(CRD().loss(moved).loss, loss[order])
    twice = batch(*(torch.cat([x, x]) for x in (v, v_old, target, advantage)), torch.cat([group, group + 3]))
    torch.testing.assert_close(CRD().loss(twice).loss.mean(), loss.mean())


def test_variances_in_the_log_are_those_of_the_groups():
    v, v_old, target, advantage, group = problem()
    metrics = CRD(beta=2.0).loss(batch(v, v_old, target, advantage, group)).metrics
    gain, q = 2 * denoising_gain(v, v_old, target), crd_target(advantage)
    for name, x in (("gain_variance", gain), ("target_variance", q)):
        expected = torch.stack([x[group == g].var(correction=0) for g in range(3)]).mean()
        torch.testing.assert_close(metrics[name].mean(), expected)


def test_without_anchor_no_anchor_is_needed_but_old_is():
    v, v_old, target, advantage, group = problem()
    free = CRD(anchor=VelocityAnchor(weight=0.0))
    out = free.loss(batch(v, v_old, target, advantage, group, anchor=None))
    torch.testing.assert_close(out.loss, out.metrics["policy_loss"])
    with pytest.raises(ValueError, match="Batch.old"):
        free.loss(batch(v, None, target, advantage, group))


def test_wrong_settings_and_rows_are_refused():
    for bad in ({"beta": 0.0}, {"advantage_clip": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="> 0"):
            CRD(**bad)
    with pytest.raises((ValueError, TypeCheckError)):
        CRD(regression="huber")
    with pytest.raises(ValueError, match="positive advantage clip"):
        crd_target(torch.zeros(2), clip=0.0)
    v, v_old, target, advantage, group = problem()
    with pytest.raises((ValueError, TypeCheckError)):
        batch(v, v_old, target, advantage, group[:5])
    with pytest.raises((ValueError, TypeCheckError)):
        batch(v, v_old, target[:, :1], advantage, group)
