import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenwise import batch_of, chosen, drawn, gradient, moved

from imgrl.objectives.text import GRPO, TRRD, TextBatch
from imgrl.objectives.text.trrd import trust_log_ratio


@settings(deadline=None)
@given(alpha=st.floats(0, 1), far=st.floats(0, 0.5))
def test_a_teacher_that_is_the_old_policy_leaves_grpo(alpha, far):
    logits, ids, mask, advantage = drawn(1)
    old = moved(logits, far)
    batch = batch_of(logits, ids, mask, advantage, old=old, teacher=chosen(old, ids))
    ours = TRRD(alpha=alpha, limit=None, clip_high=0.2)
    torch.testing.assert_close(gradient(ours, logits, batch), gradient(GRPO(), logits, batch))


def test_no_advantage_no_gradient():
    logits, ids, mask, advantage = drawn(2)
    batch = batch_of(logits, ids, mask, torch.zeros_like(advantage), old=moved(logits, 0.5))
    assert not gradient(TRRD(), logits, batch).any()


@settings(deadline=None)
@given(alpha=st.floats(0, 1))
def test_the_log_ratio_is_linear_in_alpha(alpha):
    live, old, teacher = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [trust_log_ratio(live, old, teacher, alpha=a) for a in (0.0, 1.0)]
    expected = (1 - alpha) * ends[0] + alpha * ends[1]
    torch.testing.assert_close(trust_log_ratio(live, old, teacher, alpha=alpha), expected)


# alpha 1/2, no clamp, the old policy gives the token 0.2; its weight in the gradient by advantage.
WORKED = [
    (0.8, 1.0, 0.5),
    (0.8, -1.0, 0.0),
    (0.05, 1.0, 0.0),
    (0.05, -1.0, -2.0),
    (0.2, 1.0, 1.0),
    (0.2, -1.0, -1.0),
]


@pytest.mark.parametrize(("teacher", "advantage", "weight"), WORKED)
def test_the_weight_of_a_token_before_the_first_step(teacher, advantage, weight):
    live = torch.tensor([[0.2]], dtype=torch.float64).log().requires_grad_()
    batch = TextBatch(
        log_prob=live,
        mask=torch.ones(1, 1, dtype=torch.float64),
        old=live.detach(),
        teacher=torch.tensor([[teacher]], dtype=torch.float64).log(),
        advantage=torch.tensor([advantage], dtype=torch.float64),
    )
    out = TRRD(alpha=0.5, limit=None).loss(batch)
    out.loss.sum().backward()
    assert -live.grad.item() == pytest.approx(weight)
    assert bool(out.metrics["clipped_at_old"].item()) == (weight == 0)


def test_an_advantage_of_the_other_sign_is_clipped_on_the_other_side():
    """Ratios well below, inside and well above [0.8, 1.28], made by the teacher alone."""
    live = torch.full((1, 3), -1.0, dtype=torch.float64, requires_grad=True)
    teacher = live.detach() + torch.tensor([[0.9, 0.0, -0.9]], dtype=torch.float64)
    clipped = {}
    for sign in (1.0, -1.0):
        batch = TextBatch(
            log_prob=live,
            mask=torch.ones(1, 3, dtype=torch.float64),
            old=live.detach(),
            teacher=teacher,
            advantage=torch.tensor([sign], dtype=torch.float64),
        )
        out = TRRD().loss(batch)
        slope = torch.autograd.grad(out.loss.sum(), live)[0]
        clipped[sign] = (slope == 0).tolist()[0]
        assert out.metrics["clipped"].bool().tolist()[0] == clipped[sign]
    assert clipped == {1.0: [False, False, True], -1.0: [True, False, False]}


def test_where_the_clamp_holds_the_gradient_keeps_alphas_share_or_all_of_it():
    live = torch.tensor([[-1.0]], dtype=torch.float64)
    for through, slope in ((False, 0.3), (True, 1.0)):
        x = live.clone().requires_grad_()
        trust_log_ratio(x, live, live - 5, alpha=0.3, straight_through=through).sum().backward()
        assert x.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_teacher_without_a_finite_word_is_refused_with_its_row(value):
    logits, ids, mask, advantage = drawn(2)
    batch = batch_of(logits, ids, mask, advantage)
    batch.teacher[4, 0] = value
    with pytest.raises(ValueError, match=r"rows \[4\]"):
        TRRD().loss(batch)
    TRRD(alpha=1.0).loss(batch)  # does not ask the teacher
