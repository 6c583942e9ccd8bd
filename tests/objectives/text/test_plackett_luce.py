import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.objectives.text import plackett_luce_loss
from imgrl.objectives.text.plackett_luce import suffix_logsumexp


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(u, order):
    """Minus the log-probability of drawing without replacement in this order, place by place."""
    left, places = list(range(len(u))), []
    for chosen in order[:-1]:
        places.append(math.log(sum(math.exp(u[i]) for i in left)) - u[chosen])
        left.remove(chosen)
    return places


def every_order(u):
    for order in itertools.permutations(range(len(u))):
        reward = torch.zeros(1, len(u), dtype=torch.float64)
        for place, candidate in enumerate(order):
            reward[0, candidate] = -place
        yield order, plackett_luce_loss(u[None], reward, how="sum")[0]


def test_two_candidates_are_the_hard_pair():
    u, reward = draw(4, 2), draw(4, 2, seed=1)
    margin = (u[:, 0] - u[:, 1]) * (reward[:, 0] - reward[:, 1]).sign()
    for how in ("sum", "mean"):
        torch.testing.assert_close(plackett_luce_loss(u, reward, how=how), -F.logsigmoid(margin))


def test_the_likelihoods_of_all_orders_sum_to_one_and_the_first_place_is_the_softmax():
    u = draw(4)
    first = torch.zeros(4, dtype=torch.float64)
    for order, loss in every_order(u):
        first[order[0]] += (-loss).exp()
    assert first.sum().item() == pytest.approx(1)
    torch.testing.assert_close(first, u.softmax(-1))


@given(seed=st.integers(0, 999), k=st.integers(2, 6))
@settings(deadline=None, max_examples=30)
def test_sum_mean_and_top_k_place_by_place_by_hand(seed, k):
    u, reward = draw(1, k, seed=seed), draw(1, k, seed=seed + 1000)
    places = by_hand(u[0].tolist(), reward[0].argsort(descending=True).tolist())
    assert plackett_luce_loss(u, reward, how="sum").item() == pytest.approx(sum(places))
    assert plackett_luce_loss(u, reward).item() == pytest.approx(sum(places) / len(places))
    for top in (1, 3, 10):
        expected = sum(places[:top]) / len(places[:top])
        assert plackett_luce_loss(u, reward, top_k=top).item() == pytest.approx(expected)


@given(seed=st.integers(0, 999), shift=st.floats(-50, 50), order=st.permutations(range(5)))
@settings(deadline=None, max_examples=30)
def test_a_shift_of_the_list_and_the_order_of_its_candidates_have_no_influence(seed, shift, order):
    u, reward = draw(2, 5, seed=seed).requires_grad_(), draw(2, 5, seed=seed + 1000)
    options = {"label_smoothing": 0.1, "poly": 1.0, "top_k": 3}
    loss = plackett_luce_loss(u, reward, **options)
    moved = plackett_luce_loss(u[:, order] + shift, reward[:, order], **options)
    torch.testing.assert_close(moved, loss)
    (slope,) = torch.autograd.grad(loss.sum(), u)
    torch.testing.assert_close(slope.sum(-1), torch.zeros(2, dtype=torch.float64))


def test_only_the_order_of_the_rewards_counts_and_they_get_no_gradient():
    u, reward = draw(3, 5), draw(3, 5, seed=1).requires_grad_()
    torch.testing.assert_close(plackett_luce_loss(u, reward), plackett_luce_loss(u, (3 * reward).exp()))
    assert not plackett_luce_loss(u, reward).requires_grad


def test_label_smoothing_is_cross_entropy_of_torch_with_smoothed_labels_at_each_place():
    u = draw(1, 4)
    reward = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    places = [F.cross_entropy(u[:, i:], torch.tensor([0]), label_smoothing=0.1) for i in range(3)]
    found = plackett_luce_loss(u, reward, how="sum", label_smoothing=0.1)
    torch.testing.assert_close(found[0], sum(places))


def test_the_poly_term_adds_one_minus_the_probability_of_each_place():
    u, reward = draw(1, 4), draw(1, 4, seed=1)
    places = by_hand(u[0].tolist(), reward[0].argsort(descending=True).tolist())
    expected = sum(p + 0.5 * (1 - math.exp(-p)) for p in places)
    assert plackett_luce_loss(u, reward, how="sum", poly=0.5).item() == pytest.approx(expected)


def test_the_suffix_logsumexp_has_the_exact_gradient_at_the_maximum_and_far_apart():
    u = torch.tensor([[500.0, -500.0, 0.0, 499.0]], dtype=torch.float64, requires_grad=True)
    expected = torch.stack([u[:, i:].logsumexp(-1) for i in range(4)], -1)
    torch.testing.assert_close(suffix_logsumexp(u), expected)
    weights = draw(1, 4)
    (mine,) = torch.autograd.grad((weights * suffix_logsumexp(u)).sum(), u)
    (theirs,) = torch.autograd.grad((weights * expected).sum(), u)
    torch.testing.assert_close(mine, theirs)
    assert mine[0, 0] != 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "top_k >= 1"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"poly": -1.0}, "poly"),
        ({"how": "max"}, "max"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        plackett_luce_loss(torch.zeros(1, 2), torch.zeros(1, 2), **change)


def test_a_list_of_one_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        plackett_luce_loss(torch.zeros(1, 1), torch.zeros(1, 1))
