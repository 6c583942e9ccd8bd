from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenwise import batch_of, chosen, drawn, gradient, moved

from imgrl.anchor import Frozen, Mixture, Piecewise, Switch, blend, categorical_kl
from imgrl.objectives.text import GRPO, ReMix, TextBatch
from imgrl.objectives.text.remix import LAM, draw_ages


def test_at_the_start_of_a_step_nothing_is_clipped_and_weights_are_importance_ratios():
    """Written with probability 0.2, now 0.3: weight 1.5, far outside an interval around 1."""
    for advantage in (1.0, -1.0):
        live = torch.tensor([[0.3]], dtype=torch.float64).log().requires_grad_()
        batch = TextBatch(
            log_prob=live,
            mask=torch.ones(1, 1, dtype=torch.float64),
            old=torch.tensor([[0.2]], dtype=torch.float64).log(),
            current=live.detach(),
            advantage=torch.tensor([advantage], dtype=torch.float64),
        )
        out = ReMix(kl_weight=0.0).loss(batch)
        out.loss.sum().backward()
        assert -live.grad.item() == pytest.approx(1.5 * advantage)
        assert not out.metrics["clipped"].any()


def test_the_mean_over_old_data_is_the_gradient_on_fresh_data():
    """One position, four tokens, by enumeration: behaviour-weighted replay gives the policy's own gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, dtype=torch.float64, generator=generator).requires_grad_()
    behaviour = torch.randn(4, dtype=torch.float64, generator=generator).log_softmax(-1)
    reward = torch.randn(4, dtype=torch.float64, generator=generator)
    live = logits.log_softmax(-1)
    batch = TextBatch(
        log_prob=live[:, None],
        mask=torch.ones(4, 1, dtype=torch.float64),
        old=behaviour[:, None],
        current=live.detach()[:, None],
        advantage=reward,
    )
    replayed = (behaviour.exp() * ReMix(kl_weight=0.0).loss(batch).loss[:, 0]).sum()
    fresh = -(live.exp() * reward).sum()
    torch.testing.assert_close(
        *(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (replayed, fresh))
    )


@settings(deadline=None)
@given(lam=st.floats(0, 1), seed=st.integers(0, 100))
def test_the_convex_kl_is_one_geometric_anchor(lam, seed):
    logits, *_ = drawn(seed)
    a, b = moved(logits, 1.0, 1), moved(logits, 1.0, 2)
    mixed = lam * categorical_kl(logits, a) + (1 - lam) * categorical_kl(logits, b)
    one = categorical_kl(logits, Mixture(weights=(lam, 1 - lam), space="log")(a, b))
    gradients = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (mixed, one)]
    torch.testing.assert_close(*gradients)
    log_z = torch.logsumexp(lam * a.log_softmax(-1) + (1 - lam) * b.log_softmax(-1), -1)
    torch.testing.assert_close(mixed, one - log_z)


def test_the_published_shares_of_the_base():
    values = {0: 1.0, 50: 1.0, 51: 0.9, 60: 0.9, 61: 0.8, 71: 0.7, 81: 0.6, 90: 0.6, 91: 0.5, 1000: 0.5}
    assert {step: LAM(step) for step in values} == values


def test_the_term_mixes_both_anchors_by_the_step():
    logits, ids, mask, advantage = drawn(3)
    for step, lam in ((0, 1.0), (200, 0.5)):
        batch = batch_of(logits, ids, mask, 0 * advantage, step=step)
        expected = (0.2 * (lam * batch.reverse_kl + (1 - lam) * batch.previous_kl) * mask).detach()
        torch.testing.assert_close(ReMix(kl_weight=0.2).loss(batch).loss.detach(), expected)


def test_a_kl_without_weight_at_a_step_is_not_asked_for_there():
    logits, ids, mask, advantage = drawn(3)
    objective = ReMix(kl_weight=0.2, lam=Piecewise(points=((0, 1.0), (5, 0.3), (9, 0.0))))
    both = {"reverse_kl", "previous_kl"}
    left = {step: set(objective.needs_at(step)) & both for step in (0, 4, 5, 8, 9)}
    assert left == {0: {"reverse_kl"}, 4: {"reverse_kl"}, 5: both, 8: both, 9: {"previous_kl"}}
    assert both < objective.needs  # anchors are kept from the first step on
    assert not ReMix(kl_weight=0.0).needs_at(200) & both
    for step, missing, used in ((0, "previous_kl", "reverse_kl"), (9, "reverse_kl", "previous_kl")):
        batch = batch_of(logits, ids, mask, 0 * advantage, step=step, **{missing: None})
        torch.testing.assert_close(objective.loss(batch).loss, 0.2 * getattr(batch, used) * mask)
    with pytest.raises(ValueError, match="previous_kl"):
        objective.loss(batch_of(logits, ids, mask, advantage, step=5, previous_kl=None))


def test_the_entropy_bonus_is_subtracted():
    logits, ids, mask, advantage = drawn(3)
    batch = batch_of(logits, ids, mask, 0 * advantage)
    loss = ReMix(kl_weight=0.0, entropy_weight=0.1).loss(batch).loss
    torch.testing.assert_close(loss, -0.1 * batch.entropy * mask)


def test_fresh_data_and_no_anchor_are_ppo_at_every_step():
    logits, ids, mask, advantage = drawn(8)
    old = moved(logits, 0.8)
    batch = batch_of(logits, ids, mask, advantage, old=old, current=chosen(old, ids))
    ours = gradient(ReMix(kl_weight=0.0, reduction="token"), logits, batch)
    torch.testing.assert_close(ours, gradient(GRPO(reduction="token"), logits, batch))


def test_ages_of_replayed_groups():
    generator = torch.Generator().manual_seed(0)
    counts = Counter(draw_ages(20_000, replay=0.4, available=[1, 2], generator=generator))
    assert set(counts) == {0, 1, 2}
    assert [counts[age] / 20_000 for age in range(3)] == pytest.approx([0.6, 0.2, 0.2], abs=0.015)
    assert set(draw_ages(100, replay=1.0, available=[], generator=generator)) == {0}
    assert set(draw_ages(100, replay=0.0, available=[1], generator=generator)) == {0}
    again = [
        draw_ages(9, replay=0.5, available=[1], generator=torch.Generator().manual_seed(1)) for _ in "ab"
    ]
    assert again[0] == again[1]


def test_right_after_reincarnation_the_renewed_base_pulls_nowhere():
    logits, ids, mask, advantage = drawn(9)
    objective = ReMix(kl_weight=1.0, reincarnate_at=50)
    rule = Switch(phases=((0, Frozen()), (50, Frozen())))
    base = moved(logits, 1.0)
    for step, renewed in ((49, False), (50, True)):
        blend([base], [logits.detach()], rule.decay(step))
        batch = batch_of(logits, ids, mask, 0 * advantage, base=base, previous=logits.detach(), step=step)
        kl = objective.loss(batch).metrics["anchor_kl"]
        assert (kl.max() < 1e-12) == (gradient(objective, logits, batch).abs().max() < 1e-12) == renewed
        assert objective.replays(step) != renewed


def test_replay_ends_with_reincarnation():
    objective = ReMix(reincarnate_at=50)
    assert [objective.replays(step) for step in (0, 49, 50, 99)] == [True, True, False, False]
    assert ReMix(reincarnate_at=None).replays(10_000) and not ReMix(replay=0.0).replays(0)
