import pytest
import torch
from jaxtyping import TypeCheckError
from torch.distributions import Categorical, Normal, kl_divergence

from imgrl.anchor import categorical_kl, sampled_kl, transition_gap, velocity_gap

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, ANCHOR = torch.randn(2, 5, 7, generator=GENERATOR, dtype=torch.float64)


def test_direction_is_what_its_name_says():
    policy, anchor = Categorical(logits=LOGITS), Categorical(logits=ANCHOR)
    torch.testing.assert_close(categorical_kl(LOGITS, ANCHOR), kl_divergence(policy, anchor))
    forward = categorical_kl(LOGITS, ANCHOR, direction="forward")
    torch.testing.assert_close(forward, kl_divergence(anchor, policy))
    assert (forward - kl_divergence(policy, anchor)).abs().min() > 1e-3


def test_transition_gap_is_the_gaussian_kl_and_symmetric():
    mean, other = torch.randn(2, 3, 4, generator=GENERATOR, dtype=torch.float64)
    std = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    wide = std[:, None].expand(3, 4)
    expected = kl_divergence(Normal(mean, wide), Normal(other, wide)).mean(1)
    torch.testing.assert_close(transition_gap(mean, other, std=std), expected)
    torch.testing.assert_close(transition_gap(other, mean, std=std), expected)


def test_velocity_gap_by_hand():
    v, anchor = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert velocity_gap(v, anchor).tolist() == [5.0, 2.0]  # (1 + 9) / 2 and (0 + 4) / 2
    torch.testing.assert_close(velocity_gap(anchor, v), velocity_gap(v, anchor))


def test_half_precision_is_lifted():
    v = torch.ones(1, 4096, dtype=torch.bfloat16)
    assert velocity_gap(v, v * 0.5).dtype == torch.float32


@pytest.mark.parametrize(
    "gap",
    [
        velocity_gap,
        lambda a, b: transition_gap(a, b, std=0.3),
        categorical_kl,
        lambda a, b: categorical_kl(a, b, direction="forward"),
        *(lambda a, b, k=k: sampled_kl(a - b.detach(), estimator=k) for k in ("k1", "k2", "k3")),
    ],
)
def test_zero_at_equality_and_no_gradient_to_the_anchor(gap):
    current, anchor = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    value = gap(current, anchor)
    torch.testing.assert_close(value, torch.zeros_like(value))
    value.sum().backward()
    assert anchor.grad is None


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_kl_gradient_vanishes_at_equality(direction):
    current = LOGITS.clone().requires_grad_()
    categorical_kl(current, LOGITS, direction=direction).sum().backward()
    torch.testing.assert_close(current.grad, torch.zeros_like(current), atol=1e-15, rtol=0)


def test_sampled_estimators_by_enumeration():
    # Expectations over the policy by summing over its seven outcomes: values, then gradients on fixed samples.
    logits = LOGITS[0].clone().requires_grad_()
    log_policy = logits.log_softmax(-1)
    policy, ratio = log_policy.detach().exp(), log_policy - ANCHOR[0].log_softmax(-1)
    reverse, forward = (
        categorical_kl(logits[None], ANCHOR[:1], direction=d)[0] for d in ("reverse", "forward")
    )
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((policy * sampled_kl(ratio, estimator=estimator)).sum(), reverse)
    assert (sampled_kl(ratio, estimator="k3") >= 0).all()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    def expected(k):
        return gradient((policy * sampled_kl(ratio, estimator=k)).sum())

    torch.testing.assert_close(expected("k1"), torch.zeros(7, dtype=torch.float64), atol=1e-14, rtol=0)
    torch.testing.assert_close(expected("k2"), gradient(reverse))
    torch.testing.assert_close(expected("k3"), gradient(forward))


def test_unknown_names_and_shapes_are_refused():
    with pytest.raises((ValueError, TypeCheckError)):
        categorical_kl(LOGITS, ANCHOR, direction="sideways")
    with pytest.raises((ValueError, TypeCheckError)):
        sampled_kl(LOGITS, estimator="k4")
    with pytest.raises((ValueError, TypeCheckError)):
        velocity_gap(LOGITS, ANCHOR[:, :1])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_an_impossible_outcome_adds_nothing_and_leaves_gradients_finite(direction):
    policy = torch.tensor([[0.3, -1.0, -torch.inf]], requires_grad=True)
    anchor = torch.tensor([[0.1, 0.4, -torch.inf]])
    value = categorical_kl(policy, anchor, direction=direction)
    torch.testing.assert_close(value, categorical_kl(policy[:, :2], anchor[:, :2], direction=direction))
    value.sum().backward()
    assert policy.grad is not None and bool(policy.grad.isfinite().all())


def test_an_outcome_only_the_second_rules_out_makes_it_infinite():
    both, one = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -torch.inf]])
    assert categorical_kl(both, one, direction="reverse").item() == torch.inf
    assert categorical_kl(both, one, direction="forward").item() == pytest.approx(0.6931472)
