import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.distributions import Binomial, Categorical, kl_divergence

from imgrl.anchor import Mixture
from imgrl.objectives.text import (
    TEXT_OBJECTIVES,
    MetaDistill,
    TextBatch,
    TextObjective,
    meta_distill_loss,
    meta_target,
    reduce,
)

relaxed = settings(max_examples=40, deadline=None)

# Expected values: the operators written out in numpy style below, torch.distributions' KL, and closed forms.
OPERATORS = ["arithmetic", "geometric"]
seeds, strengths = st.integers(0, 2**31 - 1), st.floats(0.02, 0.98)


def simplex(seed, count=2, outcomes=6):
    """``count`` random points, from nearly even to nearly at a corner."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.2 + 4 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return (scale * torch.randn(count, outcomes, generator=generator, dtype=torch.float64)).softmax(-1)


def kl(p, q):
    return kl_divergence(Categorical(probs=p), Categorical(probs=q))


def close_kl(p, q):
    """``kl`` where the two are so near that its terms, which nearly cancel, would leave rounding errors alone."""
    ratio = q.log() - p.log()
    return (p * (ratio.expm1() - ratio)).sum(-1)


def by_hand(q, p, strength, operator):
    if operator == "arithmetic":
        return (1 - strength) * q + strength * p
    power = q ** (1 - strength) * p**strength
    return power / power.sum()


def operate(q, p, strength, operator="arithmetic"):
    return meta_target(q.log(), base=p.log(), strength=strength, operator=operator).exp()


@pytest.mark.parametrize("operator", OPERATORS)
@relaxed
@given(seeds, st.floats(0, 1))
def test_the_operators_are_what_their_formulas_say(operator, seed, strength):
    q, p = simplex(seed)
    torch.testing.assert_close(operate(q, p, strength, operator), by_hand(q, p, strength, operator))


@relaxed
@given(seeds, strengths)
def test_history_mixes_generations_newest_first(seed, strength):
    new, old, p = simplex(seed, 3)
    target = meta_target(
        new.log(), old.log(), base=p.log(), strength=strength, operator="history", history=(0.7, 0.3)
    )
    torch.testing.assert_close(target.exp(), (1 - strength) * (0.7 * new + 0.3 * old) + strength * p)


@relaxed
@given(seeds, strengths)
def test_several_teachers_are_one_base_by_their_mixture(seed, strength):
    q, one, two = simplex(seed, 3)
    mean = Mixture(weights=(0.25, 0.75), space="prob")(one.log(), two.log())
    target = meta_target(q.log(), base=mean, strength=strength)
    by_teacher = 0.25 * strength * one + 0.75 * strength * two
    torch.testing.assert_close(target.exp(), (1 - strength) * q + by_teacher)
    mean = Mixture(weights=(0.25, 0.75), space="log")(one.log(), two.log())
    target = meta_target(q.log(), base=mean, strength=strength, operator="geometric")
    power = q ** (1 - strength) * one ** (0.25 * strength) * two ** (0.75 * strength)
    torch.testing.assert_close(target.exp(), power / power.sum())


# The axioms: a distribution, positive, p fixed, ends, symmetric in the outcomes, monotone and continuous in strength.


@pytest.mark.parametrize("operator", OPERATORS)
@relaxed
@given(seeds, strengths)
def test_it_is_a_positive_distribution_that_does_not_depend_on_the_order_of_outcomes(
    operator, seed, strength
):
    q, p = simplex(seed)
    m = operate(q, p, strength, operator)
    assert m.min() > 0 and m.sum().item() == pytest.approx(1)
    order = torch.randperm(len(q), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(operate(q[order], p[order], strength, operator), m[order])


@pytest.mark.parametrize("operator", OPERATORS)
@relaxed
@given(seeds, strengths)
def test_the_base_is_fixed_and_strengths_0_and_1_are_the_two_ends(operator, seed, strength):
    q, p = simplex(seed)
    torch.testing.assert_close(operate(p, p, strength, operator), p)
    torch.testing.assert_close(operate(q, p, 0.0, operator), q)  # without an anchor every point is fixed
    torch.testing.assert_close(operate(q, p, 1.0, operator), p)


@pytest.mark.parametrize("operator", OPERATORS)
@relaxed
@given(seeds, strengths, strengths)
def test_a_stronger_anchor_is_nearer_to_the_base(operator, seed, one, other):
    q, p = simplex(seed)
    weak, strong = sorted((one, other))
    assert kl(p, operate(q, p, strong, operator)) <= kl(p, operate(q, p, weak, operator)) + 1e-12


@pytest.mark.parametrize("operator", OPERATORS)
@relaxed
@given(seeds, strengths)
def test_a_small_change_of_strength_or_generation_is_a_small_change_of_the_target(operator, seed, strength):
    q, p = simplex(seed)
    m = operate(q, p, strength, operator)
    # A share of each probability: a small sum is no small change of q ** (1 - strength) where q is next to nothing.
    near = q * (1 + 1e-7 * torch.linspace(-1, 1, len(q), dtype=q.dtype))
    assert (operate(q, p, strength + 1e-9, operator) - m).abs().max() < 1e-6
    assert (operate(near / near.sum(), p, strength, operator) - m).abs().max() < 1e-6


# Contraction.


@pytest.mark.parametrize("operator", OPERATORS)
@relaxed
@given(seeds, strengths)
def test_fact_1_and_2_the_kl_from_the_base_contracts(operator, seed, strength):
    q, p = simplex(seed)
    assert kl(p, operate(q, p, strength, operator)) <= (1 - strength) * kl(p, q) + 1e-12


@relaxed
@given(seeds, strengths)
def test_fact_1_the_arithmetic_operator_contracts_in_the_other_direction_too(seed, strength):
    q, p = simplex(seed)
    assert kl(operate(q, p, strength), p) <= (1 - strength) * kl(q, p) + 1e-12


def test_fact_2_the_geometric_operator_does_not_in_the_other_direction():
    generator = torch.Generator().manual_seed(0)
    worst, failed, trials = 0.0, 0, 2000
    for seed in range(trials):
        q, p = simplex(seed)
        strength = torch.rand((), generator=generator).item()
        ratio = (kl(operate(q, p, strength, "geometric"), p) / ((1 - strength) * kl(q, p))).item()
        failed, worst = failed + (ratio > 1 + 1e-9), max(worst, ratio)
    assert failed > 0.05 * trials and worst > 1.5


@relaxed
@given(seeds, strengths)
def test_fact_8_history_contracts_the_largest_in_its_window(seed, strength):
    new, old, p = simplex(seed, 3)
    before = max(kl(p, new), kl(p, old))
    target = meta_target(new.log(), old.log(), base=p.log(), strength=strength, operator="history")
    assert kl(p, target.exp()) <= (1 - strength) * before + 1e-12


@pytest.mark.parametrize("operator", OPERATORS)
@relaxed
@given(seeds, strengths, st.integers(1, 12))
def test_fact_3_generations_have_a_closed_form(operator, seed, strength, generations):
    start, p = simplex(seed)
    q, kept = start, (1 - strength) ** generations
    for _ in range(generations):
        q = operate(q, p, strength, operator)
    torch.testing.assert_close(q, by_hand(start, p, 1 - kept, operator))
    assert kl(p, q) <= kept * kl(p, start) + 1e-12


@pytest.mark.parametrize("operator", OPERATORS)
@relaxed
@given(seeds)
@example(350)
def test_fact_3_near_the_base_the_rate_is_the_square(operator, seed):
    noise, p = simplex(seed)
    q = (p.log() + 1e-3 * noise).softmax(-1)  # near in every outcome, also in rare ones
    for strength in (0.1, 0.3):
        rate = close_kl(p, operate(q, p, strength, operator)) / close_kl(p, q)
        assert rate.item() == pytest.approx((1 - strength) ** 2, rel=1e-3)


@pytest.mark.parametrize("operator", OPERATORS)
@relaxed
@given(seeds)
def test_fact_4_every_start_ends_at_the_base_so_it_is_the_only_fixed_point(operator, seed):
    q, p = simplex(seed)
    for _ in range(200):
        q = operate(q, p, 0.2, operator)
    torch.testing.assert_close(q, p, atol=1e-12, rtol=1e-9)


@relaxed
@given(seeds, st.floats(0.1, 0.9), st.floats(0.001, 0.1))
def test_fact_5_errors_of_every_generation_sum_to_at_most_error_over_strength(seed, strength, error):
    start, p, *wrong = simplex(seed, 42)
    q, first = start, (start - p).abs().sum() / 2
    for generation, away in enumerate(wrong, 1):
        m = operate(q, p, strength)
        q = m + (away - m) * min(
            1.0, error / ((away - m).abs().sum() / 2).item()
        )  # off by `error` in TV at most
        bound = (1 - strength) ** generation * first + error / strength
        assert (q - p).abs().sum() / 2 <= bound + 1e-12


def transitions(n, p, strength):
    """Wright-Fisher chain of two outcomes with n samples a generation: row k is the law of the next count."""
    states = (torch.arange(n + 1, dtype=torch.float64) / n).clamp(1e-300, 1)
    q = torch.stack([states, (1 - states).clamp_min(1e-300)], -1)
    base = torch.tensor([p, 1 - p], dtype=torch.float64).expand_as(q)
    m = operate(q, base, strength)[:, 0].clamp(0, 1)
    counts = torch.arange(n + 1, dtype=torch.float64)
    return Binomial(n, m[:, None], validate_args=False).log_prob(counts).exp().nan_to_num(0.0)


def test_fact_6_without_an_anchor_sampling_loses_diversity_at_rate_one_over_n():
    n, law = 8, torch.zeros(9, dtype=torch.float64)
    law[4], share = 1.0, torch.arange(9, dtype=torch.float64) / 8
    matrix = transitions(n, 0.3, 0.0)
    for generation in range(1, 20):
        law = law @ matrix
        mixed = (law * 2 * share * (1 - share)).sum().item()
        assert mixed == pytest.approx((1 - 1 / n) ** generation * 0.5, rel=1e-6)


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_fact_6_with_an_anchor_the_stationary_law_is_centred_on_the_base_and_not_degenerate(strength):
    n, p, share = 8, 0.3, torch.arange(9, dtype=torch.float64) / 8
    law = torch.linalg.matrix_power(transitions(n, p, strength), 500)[4]
    mean = (law * share).sum()
    variance = (law * (share - mean) ** 2).sum()
    assert mean.item() == pytest.approx(p)
    kept = (1 - strength) ** 2  # the fixed point of variance -> E[m (1 - m)] / n + kept variance
    assert variance.item() == pytest.approx(p * (1 - p) / n / (1 - kept * (1 - 1 / n)))


def project(target, features):
    """The member of the log-linear family of ``features`` nearest to ``target`` in KL(target || .), by Newton."""
    theta = torch.zeros(features.shape[1], dtype=torch.float64)
    for _ in range(50):
        q = (features @ theta).softmax(-1)
        centred = features - q @ features
        theta = theta + torch.linalg.solve((centred * q[:, None]).T @ centred, (target - q) @ features)
    return (features @ theta).softmax(-1)


def test_fact_7_a_small_student_ends_at_the_bases_projection_and_its_error_there_stays():
    generator = torch.Generator().manual_seed(1)
    features = 0.5 * torch.randn(6, 2, generator=generator, dtype=torch.float64)
    p = torch.randn(6, generator=generator, dtype=torch.float64).softmax(-1)
    best, q = project(p, features), project(torch.ones(6, dtype=torch.float64) / 6, features)
    gap = (q - p) @ features
    for _ in range(60):
        q = project(operate(q, p, 0.3), features)
        torch.testing.assert_close((q - p) @ features, 0.7 * gap)  # the family's moments contract exactly
        gap = (q - p) @ features
        assert kl(p, q) >= kl(p, best) - 1e-12
    torch.testing.assert_close(q, best)
    assert kl(p, best) > 1e-3


# The student.


def test_the_loss_is_the_forward_kl_to_the_target_and_its_gradient_is_their_difference():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    last, base = torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64)
    target = meta_target(last, base=base, strength=0.4)
    loss = meta_distill_loss(logits, target)
    torch.testing.assert_close(loss, kl_divergence(Categorical(logits=target), Categorical(logits=logits)))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, (logits.softmax(-1) - target.exp()).detach())


def test_targets_carry_no_gradient_and_are_float32_for_half_precision():
    last = torch.randn(2, 5, requires_grad=True)
    target = meta_target(last, base=torch.randn(2, 5, requires_grad=True), strength=0.3)
    assert not target.requires_grad
    half = meta_target(last.bfloat16(), base=last.bfloat16(), strength=0.3)
    assert half.dtype == torch.float32


def test_a_table_of_logits_trained_by_it_reaches_the_target():
    last, base = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(3))
    target = meta_target(last, base=base, strength=0.3, operator="geometric")
    logits = torch.zeros(4, 7, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=2.0)
    for _ in range(400):
        optimizer.zero_grad()
        meta_distill_loss(logits, target).sum().backward()
        optimizer.step()
    torch.testing.assert_close(logits.detach().softmax(-1), target.exp(), atol=1e-3, rtol=0)


def test_the_objective_is_the_masked_divergence_by_token():
    objective = TEXT_OBJECTIVES["meta_distill"]()
    assert isinstance(objective, TextObjective) and objective.needs == {"target_kl"}
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    divergence = torch.tensor([[0.5, 1.0], [1.5, float("nan")]], requires_grad=True)
    out = objective.loss(TextBatch(log_prob=torch.zeros(2, 2), mask=mask, target_kl=divergence))
    assert out.loss.tolist() == [[0.5, 1.0], [1.5, 0.0]]
    reduce(out.loss, mask, how=objective.reduction).backward()
    torch.testing.assert_close(divergence.grad, mask / 3)
    assert not out.metrics["target_kl"].requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_overflowed_is_refused_where_it_teaches(value):
    last, base, logits = torch.randn(3, 3, 2, 5, generator=torch.Generator().manual_seed(5))
    base[2, 1, 0] = value
    objective = MetaDistill()
    divergence = meta_distill_loss(logits, objective.target(last, base=base))
    mask = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"TextBatch.target_kl.*rows \[2\]"):
        objective.loss(TextBatch(log_prob=torch.zeros(3, 2), mask=mask, target_kl=divergence))
    mask[2, 1] = 0
    out = objective.loss(TextBatch(log_prob=torch.zeros(3, 2), mask=mask, target_kl=divergence))
    assert out.loss.isfinite().all() and out.loss[2, 1] == 0


def test_the_objective_uses_its_own_operator_and_says_how_many_generations_it_needs():
    last, older, base = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(4))
    objective = MetaDistill(strength=0.2, operator="history", history=(0.5, 0.5))
    assert (objective.generations, MetaDistill().generations) == (2, 1)
    expected = 0.4 * last.softmax(-1) + 0.4 * older.softmax(-1) + 0.2 * base.softmax(-1)
    torch.testing.assert_close(objective.target(last, older, base=base).exp(), expected)


def test_a_batch_without_the_divergence_is_refused():
    with pytest.raises(ValueError, match="target_kl for objective 'meta_distill'"):
        MetaDistill().loss(TextBatch(log_prob=torch.zeros(1, 2), mask=torch.ones(1, 2)))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"strength": 1.5}, r"strength in \[0, 1\], got 1.5"),
        ({"strength": float("nan")}, "strength in"),
        ({"length": 0}, "length >= 1"),
        ({"operator": "harmonic"}, "harmonic"),
        ({"reduction": "mean"}, "mean"),
        ({"history": (0.5, 0.6)}, "sum to 1"),
        ({"history": ()}, "sum to 1"),
        ({"history": (1.5, -0.5)}, "sum to 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):  # under pytest annotations refuse some first
        MetaDistill(**wrong)


def test_wrong_arguments_of_the_target_are_refused():
    z = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="Expected 2 generations for the history operator, got 1"):
        meta_target(z, base=z, strength=0.3, operator="history")
    with pytest.raises(ValueError, match=r"strength in \[0, 1\]"):
        meta_target(z, base=z, strength=-0.1)
    with pytest.raises((ValueError, TypeError), match="harmonic"):
        meta_target(z, base=z, strength=0.1, operator="harmonic")
