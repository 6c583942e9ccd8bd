import pytest
import torch

from imgrl.objectives.text import TextBatch, reduce

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, float("nan")]])
MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("how", "by_hand"),
    [("token", (1 + 2 + 3 + 4) / 4), ("sequence_mean", (2 + 4) / 2), ("sequence_sum", (6 + 4) / 2)],
)
def test_reductions_by_hand_and_nan_outside_the_mask_has_no_influence(how, by_hand):
    assert reduce(X, MASK, how=how).item() == pytest.approx(by_hand)


@pytest.mark.parametrize(("how", "total"), [("token", 4), ("sequence_mean", 2), ("sequence_sum", 2)])
def test_micro_batches_with_a_shared_denominator_add_up(how, total):
    parts = [reduce(X[i : i + 1], MASK[i : i + 1], how=how, denominator=total) for i in range(2)]
    assert sum(parts).item() == pytest.approx(reduce(X, MASK, how=how).item())


def test_the_gradient_outside_the_mask_is_zero():
    x = X.clone().requires_grad_()
    reduce(x, MASK, how="token").backward()
    assert torch.equal(x.grad, MASK / 4)


def test_a_sequence_without_loss_tokens_is_refused_with_its_row():
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        TextBatch(log_prob=torch.zeros(2, 3), mask=torch.tensor([[1.0, 0, 0], [0, 0, 0]]))


def test_fields_of_another_shape_are_refused():
    with pytest.raises(
        (ValueError, TypeError), match="old"
    ):  # under pytest the shape annotation refuses it first
        TextBatch(log_prob=torch.zeros(2, 3), mask=torch.ones(2, 3), old=torch.zeros(2, 4))
