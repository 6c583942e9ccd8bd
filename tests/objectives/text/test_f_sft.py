import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from supervised import batch_of, gradient, problem

from imgrl.objectives.text import FSFT, SFT, f_sft_loss, logits_as_q_loss, token_statistics

EVERY = ["total_variation", "pearson", "hellinger", "kl", "jensen_shannon"]
LEVELS = ["token", "sequence_mean", "sequence"]
REDUCTION = {"token": "token", "sequence_mean": "sequence_mean", "sequence": "sequence_sum"}


@given(seed=st.integers(0, 999), beta=st.floats(0.01, 5), level=st.sampled_from(LEVELS))
@settings(deadline=None, max_examples=25)
def test_total_variation_is_sft_wherever_the_policy_is(seed, beta, level):
    live, base, ids, mask = problem(seed)
    mine = gradient(FSFT(divergence="total_variation", beta=beta, level=level), live, base, ids, mask)
    expected = gradient(SFT(reduction=REDUCTION[level]), live, base, ids, mask)
    torch.testing.assert_close(mine, expected)


def test_total_variations_value_is_sfts_less_the_anchors():
    live, base, ids, mask = problem()
    objective = FSFT(divergence="total_variation")
    batch = batch_of(objective, live, base, ids, mask)
    gap = objective.loss(batch).loss - SFT().loss(batch).loss
    torch.testing.assert_close(gap, (batch.anchor * mask).detach(), check_dtype=False)


@pytest.mark.parametrize("divergence", EVERY)
@pytest.mark.parametrize("level", LEVELS)
def test_at_the_anchor_every_divergence_steps_like_sft(divergence, level):
    live, _, ids, mask = problem()
    objective = FSFT(divergence=divergence, beta=1.0, level=level)
    mine = gradient(objective, live, live.detach(), ids, mask)
    torch.testing.assert_close(mine, gradient(SFT(reduction=REDUCTION[level]), live, None, ids, mask))


@pytest.mark.parametrize("divergence", EVERY)
@pytest.mark.parametrize("level", LEVELS)
def test_as_beta_goes_to_zero_every_divergence_becomes_sft(divergence, level):
    live, base, ids, mask = problem()
    mine = gradient(FSFT(divergence=divergence, beta=1e-7, level=level), live, base, ids, mask)
    expected = gradient(SFT(reduction=REDUCTION[level]), live, base, ids, mask)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("divergence", "slope"),
    [
        ("pearson", lambda x: 1 - x / 2),
        ("hellinger", lambda x: (1 + x) ** -2),
        ("kl", lambda x: (-x).exp()),
        ("jensen_shannon", lambda x: (-x).exp() / (2 - (-x).exp())),
    ],
)
def test_the_gradient_is_sfts_times_the_slope_at_the_scaled_log_ratio(divergence, slope):
    live, base, ids, mask = problem()
    objective = FSFT(divergence=divergence, beta=0.1)
    log_p = live.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    rho = (log_p - base.log_softmax(-1).gather(-1, ids[..., None])[..., 0]).detach()
    weighted = -(slope(0.1 * rho) * log_p * mask).sum() / mask.sum()
    (expected,) = torch.autograd.grad(weighted, live)
    torch.testing.assert_close(gradient(objective, live, base, ids, mask), expected)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_pearson_rests_two_over_beta_above_the_anchor_and_pushes_back_beyond(beta):
    mask, anchor = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), -30.0, dtype=torch.float64)
    pulls = []
    for rho in (2 / beta - 0.5, 2 / beta, 2 / beta + 0.5):
        log_prob = (anchor + rho).requires_grad_()
        loss = f_sft_loss(log_prob, anchor, mask, divergence="pearson", beta=beta)
        pulls.append(-torch.autograd.grad(loss.sum(), log_prob)[0].item())  # how descent moves log p
    assert pulls[0] > 0 > pulls[2] and pulls[1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("divergence", EVERY)
@pytest.mark.parametrize("level", LEVELS)
def test_no_log_ratio_makes_a_nan(divergence, level):
    rho = torch.linspace(-1e3, 1e3, 101).view(-1, 1).requires_grad_()
    loss = f_sft_loss(
        rho, torch.zeros(101, 1), torch.ones(101, 1), divergence=divergence, beta=1.0, level=level
    )
    (slope,) = torch.autograd.grad(loss.sum(), rho)
    assert loss.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("divergence", EVERY)
@pytest.mark.parametrize("level", LEVELS)
def test_a_nan_off_the_mask_reaches_neither_loss_nor_gradient(divergence, level):
    log_prob, anchor = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    given = []
    for off in (0.0, torch.nan):
        live, base = (torch.where(mask > 0, x, off) for x in (log_prob, anchor))
        live.requires_grad_()
        loss = f_sft_loss(live, base, mask, divergence=divergence, beta=1.0, level=level)
        given.append([loss, *torch.autograd.grad(loss.sum(), live)])
    assert all(torch.equal(clean, spoilt) for clean, spoilt in zip(*given, strict=True))
    assert given[0][0].isfinite().all()


def test_sequence_levels_give_a_number_a_sequence_and_say_how_hard_each_pulls():
    live, base, ids, mask = problem()
    for level in LEVELS:
        objective = FSFT(level=level, divergence="pearson", beta=0.1)
        loss, metrics = objective.loss(batch_of(objective, live, base, ids, mask))
        assert loss.shape == metrics["pull"].shape == (mask.shape if level == "token" else mask.shape[:1])
        torch.testing.assert_close(metrics["pull"], 1 - 0.1 * metrics["log_ratio"] / 2)


def q_problem(seed=0):
    live, base, ids, mask = problem(seed)
    anchor = base.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return live, anchor, ids, mask


def q_loss(live, anchor, ids, mask, divergence, beta=0.5):
    values = token_statistics(live, ids, want={"log_prob", "log_partition"}, mask=mask)
    return logits_as_q_loss(**values, anchor=anchor, mask=mask, divergence=divergence, beta=beta)


def test_with_logits_as_q_the_total_variation_is_sft_plus_a_constant():
    live, anchor, ids, mask = q_problem()
    mine = q_loss(live, anchor, ids, mask, "total_variation")
    log_p = live.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(mine, ((anchor - log_p) * mask).sum(-1))
    (slope,) = torch.autograd.grad(mine.mean(), live)
    torch.testing.assert_close(slope, gradient(SFT(reduction="sequence_sum"), live, None, ids, mask))


def test_the_anchored_softmax_of_q_is_the_policy():
    live, base, _, _ = problem()
    beta = 0.5
    q = beta * (live - base.log_softmax(-1))
    value = beta * live.logsumexp(-1, keepdim=True)
    torch.testing.assert_close(base.softmax(-1) * ((q - value) / beta).exp(), live.softmax(-1))


def test_shifting_all_logits_of_a_position_matters_only_where_phi_bends():
    live, anchor, ids, mask = q_problem()
    shift = torch.randn(*mask.shape, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for divergence, same in (("total_variation", True), ("pearson", False)):
        one = q_loss(live, anchor, ids, mask, divergence)
        other = q_loss(live + shift, anchor, ids, mask, divergence)
        assert torch.allclose(one, other, rtol=1e-9) is same


def test_logits_as_q_by_hand_with_a_gap_in_the_mask():
    # Loss tokens 0 and 2 of three, Pearson, beta 1: r0 = Q0 - V2, r2 = Q2, loss = V0 - phi(r0) - phi(r2).
    log_prob = torch.tensor([[-0.5, float("nan"), -0.25]], dtype=torch.float64)
    value = torch.tensor([[0.3, float("nan"), 0.7]], dtype=torch.float64)
    anchor = torch.tensor([[-1.0, float("nan"), -0.5]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    r0, r2 = (-0.5 + 0.3 + 1.0) - 0.7, -0.25 + 0.7 + 0.5
    expected = 0.3 - (r0 - r0**2 / 4) - (r2 - r2**2 / 4)
    loss = logits_as_q_loss(log_prob, value, anchor, mask, divergence="pearson", beta=1.0)
    assert loss.item() == pytest.approx(expected)


def test_logits_as_q_is_blind_to_what_the_mask_leaves_out():
    live, anchor, ids, mask = q_problem()
    noise = (mask == 0)[..., None] * torch.randn(live.shape, dtype=torch.float64)
    one, other = (q_loss(x, anchor, ids, mask, "pearson") for x in (live, live + noise))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("key", "value"), [("beta", 0.0), ("beta", float("inf")), ("divergence", "renyi"), ("level", "word")]
)
def test_settings_that_mean_nothing_are_refused_by_name(key, value):
    with pytest.raises((ValueError, TypeError), match=key):
        FSFT(**{key: value})


def test_the_anchors_side_gets_no_gradient():
    log_prob, anchor = (torch.randn(2, 3).requires_grad_() for _ in range(2))
    loss = f_sft_loss(log_prob, anchor, torch.ones(2, 3), divergence="kl", beta=1.0)
    loss.sum().backward()
    assert anchor.grad is None
