import pytest
import torch

from imgrl.objectives.text import TextBatch
from imgrl.objectives.text.lists import list_rewards, list_rows, sequence_scores, spread


def batch(group, **fields):
    n = len(group)
    return TextBatch(log_prob=torch.zeros(n, 2), mask=torch.ones(n, 2), group=torch.tensor(group), **fields)


def test_rows_of_a_prompt_are_found_wherever_they_lie_and_keep_their_order():
    assert list_rows(batch([7, 2, 7, 2])).tolist() == [[1, 3], [0, 2]]
    assert list_rows(batch([0, 0, 0, 5, 5, 5]), size=3).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_lists_value_goes_back_to_its_rows():
    rows = list_rows(batch([7, 2, 7, 2]))
    assert spread(torch.tensor([20.0, 70.0]), rows).tolist() == [70.0, 20.0, 70.0, 20.0]


@pytest.mark.parametrize(
    ("group", "size", "message"),
    [
        ([0, 0, 1], None, "groups of 1 to 2"),
        ([0, 0, 1, 1], 4, "whole groups of 4, got groups of 2"),
        ([0, 1, 2], None, "at least two sequences"),
    ],
)
def test_groups_that_are_not_whole_are_refused(group, size, message):
    with pytest.raises(ValueError, match=message):
        list_rows(batch(group), size=size)


def test_a_batch_without_groups_or_usable_rewards_is_refused():
    with pytest.raises(ValueError, match="TextBatch.group"):
        list_rows(TextBatch(log_prob=torch.zeros(2, 1), mask=torch.ones(2, 1)))
    rows = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match="'x', got None"):
        list_rewards(batch([0, 0]), rows, name="x")
    with pytest.raises(ValueError, match="NaN"):
        list_rewards(batch([0, 0], reward=torch.tensor([1.0, float("nan")])), rows, name="x")


def test_scores_are_sums_or_means_over_the_loss_tokens_alone():
    log_prob = torch.tensor([[-1.0, -3.0, float("nan")], [-2.0, float("nan"), -4.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert sequence_scores(log_prob, mask, norm="sum").tolist() == [-4.0, -2.0]
    assert sequence_scores(log_prob, mask, norm="mean").tolist() == [-2.0, -2.0]


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_a_broken_log_probability_of_a_loss_token_is_refused_with_its_row(value):
    log_prob = torch.tensor([[-1.0, -1.0], [-1.0, value]])
    with pytest.raises(ValueError, match=r"TextBatch.anchor, got NaN or infinity in rows \[1\]"):
        sequence_scores(log_prob, torch.ones(2, 2), norm="sum", name="anchor")
