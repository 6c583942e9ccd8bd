"""Distances by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.evaluation.diversity import diversity


def flat(*levels):
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_by_hand():
    """Group 0: |0 - 0.5| = 0.5. Group 1: pairs 0.1, 0.3, 0.2 -> 0.2. Mean 0.35; the lone image counts nowhere."""
    images = flat(0.0, 0.1, 0.5, 0.2, 0.4, 0.9)
    assert diversity(images, torch.tensor([0, 1, 0, 1, 1, 2])) == pytest.approx(0.35)


def test_black_against_white_is_one_and_equal_images_are_zero():
    assert diversity(flat(0.0, 1.0), torch.tensor([3, 3])) == 1.0
    assert diversity(flat(0.4, 0.4, 0.4), torch.tensor([3, 3, 3])) == 0.0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), rows=st.permutations(range(6)))
def test_order_does_not_matter(seed, rows):
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    assert diversity(images[rows], group[rows]) == pytest.approx(diversity(images, group), rel=1e-12)


def test_single_images_have_none_and_wrong_groups_are_refused():
    assert math.isnan(diversity(flat(0.1, 0.2), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="2 images"):
        diversity(flat(0.1, 0.2), torch.tensor([0]))
