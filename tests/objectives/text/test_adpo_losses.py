import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.anchor import anchored_softmax, center, centered_match
from imgrl.objectives.text import Target, adpo_loss, pairwise_loss, step_damping, target_loss
from imgrl.objectives.text.adpo_losses import anchored_scores, surprise


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(b=3, k=5, seed=0):
    scores, anchor = 2 * draw(b, k, seed=seed), 2 * draw(b, k, seed=seed + 1000)
    return scores.requires_grad_(), anchor, draw(b, k, seed=seed + 2000).softmax(-1)


def slope(loss, x):
    return torch.autograd.grad(loss.sum(), x, retain_graph=True)[0]


seeds = st.integers(0, 999)
temperatures = st.sampled_from([0.1, 0.8, 1.0, 5.0])


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_a_hard_pair_at_temperature_one_over_beta_is_dpos_loss(beta):
    scores, anchor, _ = problem(k=2)
    ratio = scores - anchor
    expected = -F.logsigmoid(beta * (ratio[:, 0] - ratio[:, 1]))
    hard = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)
    for loss in (
        adpo_loss(scores, anchor, hard, temperature=1 / beta),
        pairwise_loss(scores, anchor, temperature=1 / beta),
        target_loss(scores, Target.dpo(3, beta=beta), anchor),
    ):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(slope(loss, scores), slope(expected, scores))


def test_smoothed_labels_are_cdpo_and_soft_ones_the_logistic_regression_of_the_margin():
    scores, anchor, _ = problem(k=2)
    margin = ((scores - anchor) / 4)[:, 0] - ((scores - anchor) / 4)[:, 1]
    cdpo = -0.9 * F.logsigmoid(margin) - 0.1 * F.logsigmoid(-margin)
    smooth = target_loss(scores, Target.dpo(3, beta=0.25, label_smoothing=0.1), anchor)
    torch.testing.assert_close(smooth, cdpo, rtol=1e-6, atol=1e-6)
    s = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(margin, s, reduction="none")
    torch.testing.assert_close(pairwise_loss(scores, anchor, s, temperature=4.0), expected)
    torch.testing.assert_close(target_loss(scores, Target.soft_dpo(s, beta=0.25), anchor), expected)


@given(seed=seeds, temperature=temperatures)
@settings(deadline=None, max_examples=40)
def test_the_gradient_is_the_difference_to_the_target_over_the_temperature(seed, temperature):
    scores, anchor, q = problem(seed=seed)
    p = ((scores - anchor) / temperature).detach().softmax(-1)
    found = slope(adpo_loss(scores, anchor, q, temperature=temperature), scores)
    torch.testing.assert_close(found, (p - q) / temperature)
    torch.testing.assert_close(found.sum(-1), torch.zeros(3, dtype=torch.float64))


@given(seed=seeds, temperature=temperatures)
@settings(deadline=None, max_examples=40)
def test_what_depends_on_the_prompt_alone_has_no_influence(seed, temperature):
    scores, anchor, q = problem(seed=seed)
    loss = adpo_loss(scores, anchor, q, temperature=temperature)
    c, d = 10 * draw(3, 1, seed=seed + 1), 10 * draw(3, 1, seed=seed + 2)
    shifted = adpo_loss(scores + c, anchor + d, q, temperature=temperature)
    torch.testing.assert_close(shifted, loss)
    torch.testing.assert_close(slope(shifted, scores), slope(loss, scores))


@given(seed=seeds, order=st.permutations(range(5)))
@settings(deadline=None, max_examples=40)
def test_candidates_in_another_order_are_the_same_list(seed, order):
    scores, anchor, q = problem(seed=seed)
    loss = adpo_loss(scores, anchor, q, temperature=0.8)
    moved = adpo_loss(scores[:, order], anchor[:, order], q[:, order], temperature=0.8)
    torch.testing.assert_close(moved, loss)
    torch.testing.assert_close(slope(moved, scores), slope(loss, scores))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_at_the_closed_form_optimum_the_loss_is_the_targets_entropy_and_the_gradient_nothing(temperature):
    _, anchor, q = problem()
    best = (anchor.log_softmax(-1) + temperature * q.log()).log_softmax(-1).requires_grad_()
    loss = adpo_loss(best, anchor, q, temperature=temperature)
    torch.testing.assert_close(loss, torch.distributions.Categorical(q).entropy())
    assert slope(loss, best).abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_gradient_descent_ends_at_the_anchor_times_a_power_of_the_target(temperature):
    logits, anchor, q = problem()
    logits = logits.detach().requires_grad_()
    for _ in range(600):
        loss = adpo_loss(logits.log_softmax(-1), anchor, q, temperature=temperature)
        logits = (logits - temperature**2 * slope(loss, logits)).detach().requires_grad_()
    expected = anchor.softmax(-1) * q**temperature
    torch.testing.assert_close(
        logits.softmax(-1), expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=0
    )


def test_the_curvature_at_the_optimum_is_the_targets_covariance_over_the_squared_temperature():
    _, anchor, q = problem(b=1)
    best = (anchor + 0.7 * q.log())[0]

    def loss(x):
        return adpo_loss(x[None], anchor, q, temperature=0.7)[0]

    expected = (q[0].diag() - q[0][:, None] * q[0][None]) / 0.7**2
    torch.testing.assert_close(torch.autograd.functional.hessian(loss, best), expected)


def test_over_a_vocabulary_raw_logits_do_as_well_as_log_probabilities():
    logits, anchor, q = problem(k=11)
    ours = adpo_loss(logits, anchor, q, temperature=0.8)
    normalised = adpo_loss(logits.log_softmax(-1), anchor.log_softmax(-1), q, temperature=0.8)
    torch.testing.assert_close(ours, normalised)
    torch.testing.assert_close(slope(ours, logits), slope(normalised, logits))


def test_a_uniform_anchor_and_a_single_gold_token_are_cross_entropy():
    logits, _, _ = problem(k=11)
    gold = torch.tensor([3, 0, 10])
    expected = F.cross_entropy(logits, gold, reduction="none")
    one_hot = F.one_hot(gold, 11).double()
    torch.testing.assert_close(adpo_loss(logits, None, one_hot, temperature=1.0), expected)
    flat = torch.full_like(logits, -math.log(11))  # a uniform model is no anchor
    torch.testing.assert_close(adpo_loss(logits, flat, one_hot, temperature=1.0), expected)


def test_the_first_step_on_own_samples_is_reinforce_with_centred_targets():
    logits, _, q = problem()
    log_p = logits.log_softmax(-1)
    p = anchored_softmax(log_p - log_p.detach(), temperature=0.8).exp()
    torch.testing.assert_close(p, torch.full_like(p, 1 / 5))
    expected = -((q - 1 / 5) / 0.8 * log_p).sum(-1)  # REINFORCE: minus weight times log-probability
    ours = adpo_loss(log_p, log_p.detach(), q, temperature=0.8)
    torch.testing.assert_close(slope(ours, logits), slope(expected, logits))


def test_a_small_temperature_ends_at_the_anchor_and_a_large_one_stops_the_gradient():
    scores, anchor, q = problem()
    best = (anchor + 1e-3 * q.log()).softmax(-1)  # where the loss has no gradient, by the closed form
    fixed = best.log().requires_grad_()
    assert slope(adpo_loss(fixed, anchor, q, temperature=1e-3), fixed).abs().max() < 1e-9
    torch.testing.assert_close(best, anchor.softmax(-1), atol=2e-3, rtol=0)
    sizes = [
        slope(adpo_loss(scores, anchor, q, temperature=t), scores).norm().item() for t in (1e2, 1e3, 1e4)
    ]
    assert sizes[0] > 9 * sizes[1] > 80 * sizes[2] > 0
    # Not a tight leash: the same large temperature ends further away than a small one.
    far = (anchor + 1e2 * q.log()).softmax(-1)
    assert (far - anchor.softmax(-1)).abs().max() > 0.3


def test_the_fixed_point_is_that_of_centred_reward_distillation():
    # Both hold where the centred log-ratio over the temperature is the centred reward over its own.
    reward, anchor, temperature, reward_temperature = draw(3, 4), draw(3, 4, seed=5), 0.7, 0.4
    ratio = (reward * temperature / reward_temperature + 3 * draw(3, 1, seed=9)).requires_grad_()
    q = (reward / reward_temperature).softmax(-1)
    assert slope(adpo_loss(ratio + anchor, anchor, q, temperature=temperature), ratio).abs().max() < 1e-12
    group = torch.arange(3).repeat_interleave(4)
    match = centered_match(ratio.flatten(), reward.flatten(), group, beta=reward_temperature / temperature)
    assert match.max() < 1e-24
    # Away from it they differ in the metric: flat for one, the softmax's covariance for the other.
    step = 1e-5 * draw(3, 4, seed=7)
    near = (ratio.detach() + step).requires_grad_()
    adpo = slope(adpo_loss(near + anchor, anchor, q, temperature=temperature), near)
    fisher = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
    torch.testing.assert_close(
        adpo, (fisher @ step[..., None])[..., 0] / temperature**2, atol=1e-9, rtol=1e-3
    )
    beta = reward_temperature / temperature
    crd = slope(centered_match(near.flatten(), reward.flatten(), group, beta=beta), near)
    flat = 2 * beta**2 * center(step.flatten(), group).view(3, 4)
    torch.testing.assert_close(crd, flat, atol=1e-10, rtol=1e-6)


def test_only_live_scores_get_a_gradient_and_half_precision_is_left():
    scores, anchor, q = problem()
    anchor.requires_grad_()
    q.requires_grad_()
    temperature = torch.ones(3, dtype=torch.float64, requires_grad=True)
    adpo_loss(scores, anchor, q, temperature=temperature).sum().backward()
    assert scores.grad is not None
    assert anchor.grad is None and q.grad is None and temperature.grad is None
    half = adpo_loss(scores.detach().bfloat16(), anchor.detach().bfloat16(), q.float(), temperature=1.0)
    assert half.dtype == torch.float32


def test_a_temperature_by_list_is_each_lists_own():
    scores, anchor, q = problem()
    each = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    together = adpo_loss(scores, anchor, q, temperature=each)
    alone = [
        adpo_loss(scores[i : i + 1], anchor[i : i + 1], q[i : i + 1], temperature=t)
        for i, t in enumerate((0.5, 1.0, 2.0))
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("rule", "h", "r", "by_hand"),
    [
        ("late", 0.0, 0.0, 0.8 * 2.0),  # sure and wrong: the largest
        ("late", 0.0, 1.0, 0.8),  # sure and right
        ("late", 1.0, 0.0, 0.8 * 1.5),
        ("late", 0.5, 0.5, 0.8 * 1.5),
        ("early", 0.0, 0.0, 0.8),
        ("early", 0.5, 1.0, 0.8 * 0.75),
        ("early", 1.0, 0.0, 0.8 * 0.5),
    ],
)
def test_the_published_rules_of_the_adaptive_temperature_by_hand(rule, h, r, by_hand):
    damped = step_damping(torch.tensor([h]), torch.tensor([r]), temperature=0.8, rule=rule)
    assert damped.item() == pytest.approx(by_hand)


def test_the_early_rules_floor_the_late_ones_ceiling_and_no_gradient_through_either():
    h = torch.tensor([1.0], requires_grad=True)
    early = step_damping(h, torch.zeros(1), temperature=0.8, rule="early", surprise_weight=1.0)
    assert early.item() == pytest.approx(0.1) and not early.requires_grad
    late = step_damping(h, torch.zeros(1), temperature=4.0)
    assert late.item() == pytest.approx(5.0) and not late.requires_grad


def test_surprise_is_one_for_guessing_and_zero_for_certainty():
    log_prob = torch.tensor([-math.log(50), 0.0, -0.5 * math.log(50), -100.0], requires_grad=True)
    found = surprise(log_prob, vocabulary=50)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.5, 1.0]))
    assert not found.requires_grad


def test_what_makes_no_sense_is_refused():
    scores, anchor, q = problem()
    with pytest.raises(ValueError, match="temperature > 0, got 0"):
        adpo_loss(scores, anchor, q, temperature=0.0)
    with pytest.raises((ValueError, TypeError), match="sideways"):
        step_damping(torch.zeros(1), torch.zeros(1), temperature=1.0, rule="sideways")
    with pytest.raises(ValueError, match="vocabulary of at least 2"):
        surprise(torch.zeros(1), vocabulary=1)
    with pytest.raises((ValueError, TypeError), match="anchor"):
        anchored_scores(scores, anchor[:, :4], temperature=1.0)
    with pytest.raises(ValueError, match="Expected a model as anchor"):
        target_loss(scores, Target.online(draw(3, 5)))
    with pytest.raises(ValueError, match="uniform anchor"):
        target_loss(scores, Target.m_projection(draw(3, 5), anchor, beta=1.0), anchor)
