"""The recogniser's probability of a text: against every alignment counted one by one, and on real weights."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.rewards.likelihood import log_likelihood

SYMBOLS = ["a", "A", "b", " "]


def collapsed(path):
    """What a path of symbols says: repeats are one, then blanks fall away; case and spaces do not count."""
    # A space counts as a blank and a capital as its small letter, so both are replaced before repeats are merged.
    names = ["", "a", "a", "b", ""]
    said = [names[step] for step in path]
    return "".join(symbol for symbol, _ in itertools.groupby(said))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["a", "b", "ab", "aa", "aba"]))
def test_equals_the_sum_over_all_alignments(seed, target):
    steps = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)).double().log_softmax(-1)
    expected = sum(
        math.exp(sum(float(steps[time, symbol]) for time, symbol in enumerate(path)))
        for path in itertools.product(range(5), repeat=5)
        if collapsed(path) == target
    )
    assert log_likelihood([steps], SYMBOLS, target) == pytest.approx(math.log(expected), rel=1e-6)


def test_crops_are_read_one_after_the_other():
    steps = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert log_likelihood([steps[:2], steps[2:]], SYMBOLS, "ab") == log_likelihood([steps], SYMBOLS, "ab")


@pytest.mark.parametrize(
    ("crops", "target"),
    [([], "a"), ([torch.zeros(1, 5)], "ab"), ([torch.zeros(4, 5)], "ß")],
    ids=["nothing found", "too short", "no such symbol"],
)
def test_impossible_texts_have_no_probability(crops, target):
    assert log_likelihood(crops, SYMBOLS, target) == -math.inf
