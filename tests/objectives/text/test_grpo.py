from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenwise import batch_of, chosen, drawn, gradient, moved

from imgrl.anchor import categorical_kl, sampled_kl
from imgrl.objectives.surrogate import clipped_surrogate
from imgrl.objectives.text import GRPO, KDRL, SPINE, TRRD, TTRL, ReMix, TextBatch, reduce
from imgrl.objectives.text.clipped import check_kl, policy_kl


@settings(deadline=None)
@given(seed=st.integers(0, 500), far=st.floats(0, 1.5))
def test_the_loss_of_trls_trainer(seed, far):
    """Clipped terms, k3 and masked averages as in ``GRPOTrainer._compute_loss`` of TRL 1.16, written out."""
    logits, ids, mask, advantage = drawn(seed)
    old, base = moved(logits, far), moved(logits, 0.5, 9)
    live, a = chosen(logits, ids), advantage[:, None]
    ratio = torch.exp(live - chosen(old, ids))
    clipped = torch.clamp(ratio, 1 - 0.2, 1 + 0.28)
    away = chosen(base, ids) - live
    per_token = -torch.min(ratio * a, clipped * a) + 0.04 * (torch.exp(away) - away - 1)
    grpo = ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    dapo = (per_token * mask).sum() / mask.sum().clamp(min=1.0)
    batch = batch_of(logits, ids, mask, advantage, old=old, base=base)
    for how, expected in (("sequence_mean", grpo), ("token", dapo)):
        objective = GRPO(clip_high=0.28, kl_weight=0.04, kl="k3", reduction=how)
        loss = reduce(objective.loss(batch).loss, mask, how=how)
        torch.testing.assert_close(loss, expected)
        mine = torch.autograd.grad(loss, logits, retain_graph=True)[0]
        torch.testing.assert_close(mine, torch.autograd.grad(expected, logits, retain_graph=True)[0])


def test_at_ratio_one_the_gradient_is_reinforces():
    logits, ids, mask, advantage = drawn(5)
    batch = batch_of(logits, ids, mask, advantage)
    expected = reduce(-advantage[:, None] * chosen(logits, ids), mask, how="sequence_mean")
    torch.testing.assert_close(
        gradient(GRPO(), logits, batch), torch.autograd.grad(expected, logits, retain_graph=True)[0]
    )
    nothing = batch_of(logits, ids, mask, torch.zeros_like(advantage))
    assert not gradient(GRPO(), logits, nothing).any()


def test_what_the_gradients_of_kl_estimators_are():
    """By enumeration of one position: k1's is zero, k2's the reverse KL's, k3's the forward KL's."""
    logits = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    anchor = moved(logits, 1.0)
    weights = logits.detach().softmax(-1)

    def expected(estimator):
        ratio = logits.log_softmax(-1) - anchor.log_softmax(-1)
        return torch.autograd.grad((weights * sampled_kl(ratio, estimator=estimator)).sum(), logits)[0]

    def exact(direction):
        return torch.autograd.grad(categorical_kl(logits, anchor, direction=direction), logits)[0]

    torch.testing.assert_close(expected("k1"), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(expected("k2"), exact("reverse"))
    torch.testing.assert_close(expected("k3"), exact("forward"))
    live = logits.log_softmax(-1)
    in_reward = (
        weights * (live - anchor.log_softmax(-1)).detach() * live
    ).sum()  # REINFORCE with k1 as a cost
    torch.testing.assert_close(torch.autograd.grad(in_reward, logits)[0], exact("reverse"))


@pytest.mark.parametrize("estimate", ["k1", "k2", "k3"])
def test_weighted_by_the_ratio_every_estimate_has_the_reverse_kls_gradient_on_old_tokens(estimate):
    """By enumeration of what a behaviour policy may write; without the weight none has it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, dtype=torch.float64, generator=generator).requires_grad_()
    behaviour, anchor = moved(logits, 1.0, 1).log_softmax(-1), moved(logits, 1.0, 2)
    batch = TextBatch(
        log_prob=logits.log_softmax(-1)[:, None],
        mask=torch.ones(4, 1, dtype=torch.float64),
        old=behaviour[:, None],
        anchor=anchor.log_softmax(-1)[:, None],
    )
    exact = categorical_kl(logits, anchor)
    truth = torch.autograd.grad(exact, logits, retain_graph=True)[0]
    for weighted in (True, False):
        by_token = policy_kl(batch, estimate=estimate, name="grpo", weighted=weighted)[:, 0]
        mean = (behaviour.exp() * by_token).sum()
        ours = torch.autograd.grad(mean, logits, retain_graph=True)[0]
        assert torch.allclose(ours, truth) is weighted
        if estimate != "k2":
            assert torch.allclose(mean, exact) is weighted


@pytest.mark.parametrize(
    "objective", [GRPO(), TRRD(), KDRL(), ReMix(), TTRL(), SPINE()], ids=lambda o: o.name
)
def test_what_lies_outside_the_mask_has_no_influence(objective):
    logits, ids, mask, advantage = drawn(6)
    batch = batch_of(logits, ids, mask, advantage, old=moved(logits, 0.4))
    spoilt = {
        name: torch.where(mask > 0, value, torch.full_like(value, float("nan")))
        for name in (
            "log_prob",
            "old",
            "current",
            "anchor",
            "teacher",
            "entropy",
            "reverse_kl",
            "previous_kl",
        )
        if (value := getattr(batch, name)) is not None
    }
    other = replace(batch, **spoilt)
    torch.testing.assert_close(objective.loss(other).loss, objective.loss(batch).loss)
    mine = gradient(objective, logits, other)
    assert mine.isfinite().all() and not mine[mask == 0].any()
    torch.testing.assert_close(mine, gradient(objective, logits, batch))


@pytest.mark.parametrize(
    "objective", [GRPO(kl_weight=0.1), TRRD(), KDRL(), ReMix(), TTRL(), SPINE()], ids=lambda o: o.name
)
def test_a_missing_field_is_named(objective):
    logits, ids, mask, advantage = drawn(6)
    batch = replace(batch_of(logits, ids, mask, advantage), step=200)  # where ReMix mixes both its anchors
    for field in objective.needs:
        with pytest.raises(ValueError, match=field):
            objective.loss(replace(batch, **{field: None}))


def test_the_share_of_clipped_tokens_by_hand():
    logits, ids, mask, advantage = drawn(0)
    one = torch.ones_like(mask)
    ratio = torch.tensor([0.5, 1.0, 1.5, 1.25, 0.7], dtype=torch.float64).expand(6, 5)
    batch = batch_of(logits, ids, one, advantage.sign(), old=logits.detach())
    batch = batch.__class__(
        log_prob=ratio.log(), mask=one, old=torch.zeros_like(ratio), advantage=advantage.sign()
    )
    clipped = GRPO(clip_low=0.2, clip_high=0.28).loss(batch).metrics["clipped"]
    up, down = [0.0, 0, 1, 0, 0], [1.0, 0, 0, 0, 1]
    assert clipped.tolist() == [up if a > 0 else down for a in advantage]


def test_a_centre_moves_the_interval_and_one_is_the_plain_surrogate():
    ratio = torch.tensor([1.0, 1.4, 1.7, 2.0], dtype=torch.float64)
    plus = torch.ones_like(ratio)
    shifted = clipped_surrogate(ratio.log(), plus, low=0.2, high=0.2, centre=1.5 * plus)
    assert shifted.tolist() == pytest.approx([-1.0, -1.4, -1.7, -1.7])  # the upper end is 1.7
    shifted = clipped_surrogate(ratio.log(), -plus, low=0.2, high=0.2, centre=1.5 * plus)
    assert shifted.tolist() == pytest.approx([1.3, 1.4, 1.7, 2.0])  # the lower end is 1.3
    plain = clipped_surrogate(ratio.log(), plus, low=0.2, high=0.2)
    assert torch.equal(plain, clipped_surrogate(ratio.log(), plus, low=0.2, high=0.2, centre=plus))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GRPO(clip_low=1.2), "clip_low <= 1"),
        (lambda: GRPO(kl_weight=-1.0), "kl_weight >= 0"),
        (lambda: GRPO(kl="k1"), "kl_weighted=True"),
        (lambda: GRPO(kl="exact", kl_weighted=True), "kl_weighted=False"),
        (lambda: TRRD(alpha=1.5), "alpha in"),
        (lambda: TRRD(limit=0.0), "limit > 0"),
        (lambda: TRRD(kl_weight=float("nan")), "kl_weight >= 0"),
        (lambda: GRPO(passes=0), "passes >= 1"),
        (lambda: KDRL(kl_weight=0.0), "kl_weight > 0"),
        (lambda: KDRL(kl="exact"), "written tokens only"),
        (lambda: ReMix(replay=2.0), "replay in"),
        (lambda: ReMix(reincarnate_at=0), "reincarnate_at >= 1"),
        (lambda: ReMix(entropy_weight=-0.1), "entropy_weight >= 0"),
        (lambda: TTRL(kl_weight=-1.0), "kl_weight >= 0"),
        (lambda: TTRL(passes=0), "passes >= 1"),
        (lambda: SPINE(passes=0), "passes >= 1"),
        (lambda: SPINE(band_low=-1.0), "band strengths"),
        (lambda: SPINE(frozen_limits=(2.0, 1.0)), "low <= high"),
    ],
)
def test_impossible_settings_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("kind", [GRPO, TRRD, KDRL, ReMix, TTRL, SPINE], ids=lambda kind: kind.name)
def test_a_name_that_does_not_exist_is_refused_with_the_choices(kind):
    with pytest.raises((ValueError, TypeError), match=r"reduction"):
        kind(reduction="mean")
    with pytest.raises(ValueError, match=r"k9.*k1, k2, k3, exact"):
        check_kl(0.1, "k9", False, "token")
    with pytest.raises(ValueError, match=r"mean.*token, sequence_mean, sequence_sum"):
        check_kl(0.1, "k3", False, "mean")
