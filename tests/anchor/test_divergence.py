import pytest
import torch
from jaxtyping import TypeCheckError
from torch.distributions import Categorical, kl_divergence

from imgrl.anchor import categorical_kl, sampled_kl, velocity_gap

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, ANCHOR = torch.randn(2, 5, 7, generator=GENERATOR, dtype=torch.float64)


def test_direction_is_what_its_name_says():
    policy, anchor = Categorical(logits=LOGITS), Categorical(logits=ANCHOR)
    torch.testing.assert_close(categorical_kl(LOGITS, ANCHOR), kl_divergence(policy, anchor))
    forward = categorical_kl(LOGITS, ANCHOR, direction="forward")
    torch.testing.assert_close(forward, kl_divergence(anchor, policy))
    assert (forward - kl_divergence(policy, anchor)).abs().min() > 1e-3


def test_velocity_gap_by_hand():
    v, anchor = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert velocity_gap(v, anchor).tolist() == [5.0, 2.0]  # (1 + 9) / 2 and (0 + 4) / 2


def test_half_precision_is_lifted():
    v = torch.ones(1, 4096, dtype=torch.bfloat16)
    assert velocity_gap(v, v * 0.5).dtype == torch.float32


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
