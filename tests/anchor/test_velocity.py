import pytest
import torch
from golden_cases import assert_close, case_id, cases, decline, family, tensor
from jaxtyping import TypeCheckError

from imgrl.anchor import VelocityAnchor
from imgrl.flow import guided
from imgrl.objectives.image import crd_target

Q, RAW = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([0.0, 0.5, 1.0])


@pytest.mark.parametrize("case", cases("crd_loss"), ids=case_id)
def test_term_equals_flow_factorys(case):
    # Flow-Factory drives the strength by the clipped advantage.
    decline(case, "kl_cfg_le_1_uses_train_guidance", "kl_beta_below_1e-4_inverts")
    tolerance = family("crd_loss")["tolerance"][case["dtype"]]
    value = {key: tensor(case[key], case["dtype"]) for key in ("v_theta", "v_ref_cond", "v_ref_uncond")}
    adaptive = "advantage" if case["reward_adaptive_kl"] else "none"
    rule = VelocityAnchor(weight=case["kl_beta"], guidance=max(case["kl_cfg"], 1.0), adaptive=adaptive)
    anchor = guided(value["v_ref_cond"], value["v_ref_uncond"], scale=rule.guidance)
    q = crd_target(tensor(case["advantages"], case["dtype"]), clip=case["adv_clip_range"][1])
    if case.get("v_anchor") is not None:
        assert_close(anchor, case["v_anchor"], tolerance)
    if rule.active:
        assert_close(rule.weights(q, q), case["kl_weights"], tolerance)
    assert_close(rule.term(value["v_theta"], anchor, q=q, raw=q).mean(), case["kl_loss"], tolerance)


def test_what_drives_the_strength():
    def weights(mode):
        return VelocityAnchor(weight=1.0, floor=0.0, adaptive=mode).weights(Q, RAW)

    torch.testing.assert_close(weights("raw"), RAW)
    torch.testing.assert_close(weights("advantage"), Q)
    torch.testing.assert_close(weights("batch_mean_raw"), torch.full((3,), 0.5))
    torch.testing.assert_close(weights("none"), torch.ones(3))
    assert VelocityAnchor().adaptive == "raw"


def test_batch_mean_spans_processes():
    rule = VelocityAnchor(weight=1.0, floor=0.0, adaptive="batch_mean_raw")
    weights = rule.weights(Q[:1], RAW[:1], gather=lambda x: torch.cat([x, RAW[1:].to(x)]))
    assert weights.tolist() == [0.5]


def test_without_weight_no_velocity_is_needed():
    rule = VelocityAnchor(weight=0.0)
    assert not rule.active
    assert rule.term(torch.ones(3, 2), None, q=Q, raw=RAW).tolist() == [0.0] * 3
    with pytest.raises(ValueError, match="frozen model's velocity"):
        VelocityAnchor().term(torch.ones(3, 2), None, q=Q, raw=RAW)


def test_only_the_policy_has_a_gradient():
    v, anchor = torch.ones(3, 2, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    q, raw = Q.clone().requires_grad_(), RAW.clone().requires_grad_()
    VelocityAnchor().term(v, anchor, q=q, raw=raw).sum().backward()
    assert v.grad is not None and anchor.grad is None and q.grad is None and raw.grad is None


@pytest.mark.parametrize("raw", [[0.0, 0.5, 1.1], [-0.1, 0.5, 1.0], [0.0, float("nan"), 1.0]])
@pytest.mark.parametrize("mode", ["raw", "batch_mean_raw"])
def test_raw_rewards_outside_the_unit_interval_are_refused(mode, raw):
    with pytest.raises(ValueError, match=r"raw rewards in \[0, 1\]"):
        VelocityAnchor(adaptive=mode).weights(Q, torch.tensor(raw))
    VelocityAnchor(adaptive="advantage").weights(Q, torch.tensor(raw))


def test_settings_that_reverse_the_leash_are_refused():
    with pytest.raises(ValueError, match="at least its floor"):
        VelocityAnchor(weight=1e-5)
    assert VelocityAnchor(weight=1e-5, adaptive="none").weights(Q, RAW).tolist() == pytest.approx([1e-5] * 3)
    for bad in ({"weight": -1.0}, {"guidance": 0.5}, {"weight": float("nan")}):
        with pytest.raises(ValueError, match="Expected"):
            VelocityAnchor(**bad)
    with pytest.raises((ValueError, TypeCheckError)):
        VelocityAnchor(adaptive="reward")
