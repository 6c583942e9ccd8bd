import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from supervised import batch_of, gradient, problem, scalar_loss

from imgrl.objectives.text import ASFT, DFT, SFT, SFTKL, reduce, sft_loss


def test_without_the_anchor_asft_is_dft_and_sft_kl_is_sft_and_neither_asks_for_the_kl():
    live, base, ids, mask = problem()
    for anchored, plain in ((ASFT(kl_weight=0), DFT()), (SFTKL(kl_weight=0), SFT())):
        assert anchored.needs == frozenset()
        assert torch.equal(
            scalar_loss(anchored, live, base, ids, mask), scalar_loss(plain, live, base, ids, mask)
        )
        assert torch.equal(gradient(anchored, live, base, ids, mask), gradient(plain, live, base, ids, mask))


def test_asft_with_all_weights_one_is_sft_kl():
    live, base, ids, mask = problem()
    batch = batch_of(SFTKL(), live, base, ids, mask)
    by_function = sft_loss(batch.log_prob, weight="none", kl=batch.forward_kl, kl_weight=0.05)
    assert torch.equal(SFTKL().loss(batch).loss, by_function * mask)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_at_the_base_the_kl_and_its_gradient_vanish_and_asft_steps_like_dft(direction):
    live, _, ids, mask = problem()
    objective = ASFT(kl_weight=0.7, kl_direction=direction)
    _, metrics = objective.loss(batch_of(objective, live, live.detach(), ids, mask))
    torch.testing.assert_close(metrics["anchor_kl"], torch.zeros_like(mask), rtol=0, atol=1e-12)
    mine = gradient(objective, live, live.detach(), ids, mask)
    torch.testing.assert_close(mine, gradient(DFT(), live, None, ids, mask), rtol=1e-9, atol=1e-12)


def test_the_forward_kl_pulls_logits_by_the_difference_of_probabilities():
    live, base, ids, mask = problem()
    batch = batch_of(ASFT(), live, base, ids, mask)
    (pull,) = torch.autograd.grad(batch.forward_kl.sum(), live)
    torch.testing.assert_close(pull, (live.softmax(-1) - base.softmax(-1)).detach() * mask[..., None])


def test_the_reverse_kl_pulls_logits_by_the_centred_log_ratio_times_probability():
    live, base, ids, mask = problem()
    batch = batch_of(ASFT(kl_direction="reverse"), live, base, ids, mask)
    (pull,) = torch.autograd.grad(batch.reverse_kl.sum(), live)
    p, gap = live.detach().softmax(-1), live.detach().log_softmax(-1) - base.log_softmax(-1)
    torch.testing.assert_close(pull, p * (gap - (p * gap).sum(-1, keepdim=True)) * mask[..., None])


@given(seed=st.integers(0, 999), strength=st.floats(0.01, 3))
@settings(deadline=None, max_examples=25)
def test_asft_is_cross_entropy_to_a_label_smoothed_with_the_base(seed, strength):
    live, base, ids, mask = problem(seed)
    p, p0 = live.detach().softmax(-1), base.softmax(-1)
    onehot = F.one_hot(ids, live.shape[-1])
    for objective, w in (
        (ASFT(kl_weight=strength), p.gather(-1, ids[..., None])),
        (SFTKL(kl_weight=strength), torch.ones(*ids.shape, 1, dtype=torch.float64)),
    ):
        label = (w * onehot + strength * p0) / (w + strength)
        expected = (w + strength) * (p - label) * mask[..., None] / mask.sum()
        torch.testing.assert_close(
            gradient(objective, live, base, ids, mask), expected, rtol=1e-8, atol=1e-11
        )


def descend(objective, steps, rate):
    # One state seen twice, gold token 0: from even odds, and from a probability of a millionth.
    base = torch.tensor([-1.0, 0.5, 0.0], dtype=torch.float64).expand(2, 1, 3)
    live = torch.tensor([[[0.0, 0.0, 0.0]], [[-13.0, 0.0, 0.0]]], dtype=torch.float64)
    ids, mask = torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.float64)
    for _ in range(steps):
        live = live.detach().requires_grad_()
        live = live - rate * gradient(objective, live, base, ids, mask)
    return live.softmax(-1)[:, 0, 0].tolist(), base.softmax(-1)[0, 0, 0].item()


@pytest.mark.parametrize(("strength", "steps", "rate"), [(0.05, 400, 16.0), (0.5, 200, 6.0)])
def test_descent_ends_at_the_closed_form_from_a_normal_and_from_a_hopeless_start(strength, steps, rate):
    # p = ((1 - l) + sqrt((1 - l)^2 + 4 l p0)) / 2, the root of p^2 - (1 - l) p - l p0 = 0.
    reached, p0 = descend(ASFT(kl_weight=strength), steps, rate)
    end = ((1 - strength) + math.sqrt((1 - strength) ** 2 + 4 * strength * p0)) / 2
    assert reached == pytest.approx([end, end], abs=1e-6)


def test_dft_alone_learns_from_even_odds_but_stays_in_the_trap_that_the_anchor_opens():
    (normal, hopeless), _ = descend(DFT(), 100, 16.0)
    assert normal > 0.99 and hopeless < 1e-5


def test_the_anchor_is_averaged_with_the_cross_entropy_over_the_same_tokens():
    live, base, ids, mask = problem()
    batch = batch_of(ASFT(), live, base, ids, mask)
    p = torch.distributions.Categorical(logits=live)
    p0 = torch.distributions.Categorical(logits=base)
    by_token = -p.log_prob(ids).exp() * p.log_prob(ids) + 0.05 * torch.distributions.kl_divergence(p0, p)
    mine = reduce(ASFT().loss(batch).loss, mask, how="token")
    torch.testing.assert_close(mine, (by_token * mask).sum() / mask.sum())


def test_trls_forward_divergence_from_hidden_states_is_the_anchors_kl():
    pytest.importorskip("trl")
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    from imgrl.objectives.text import head_statistics

    generator = torch.Generator().manual_seed(0)
    hidden, teacher = torch.randn(2, 3, 4, 8, generator=generator)
    weight, base_weight = torch.randn(2, 33, 8, generator=generator)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
    for beta, name in ((0.0, "forward_kl"), (1.0, "reverse_kl")):
        theirs, _, _ = _chunked_divergence_loss(hidden, teacher, weight, base_weight, mask, beta)
        values = head_statistics(
            hidden,
            weight,
            torch.zeros(3, 4, dtype=torch.long),
            want={name},
            mask=mask.float(),
            anchor_hidden=teacher,
            anchor_weight=base_weight,
        )
        torch.testing.assert_close(reduce(values[name], mask.float(), how="token"), theirs)


@pytest.mark.parametrize("kind", [ASFT, SFTKL])
@pytest.mark.parametrize(
    ("key", "value"), [("kl_weight", -0.1), ("kl_weight", float("nan")), ("kl_direction", "both")]
)
def test_settings_that_mean_nothing_are_refused_by_name(kind, key, value):
    with pytest.raises((ValueError, TypeError), match=key):
        kind(**{key: value})


def test_the_vetted_setting_is_forward_and_005():
    assert ASFT() == ASFT(kl_weight=0.05, kl_direction="forward", reduction="token")
    assert ASFT().needs == {"forward_kl"} and ASFT(kl_direction="reverse").needs == {"reverse_kl"}
