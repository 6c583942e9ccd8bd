import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imgrl.analysis.update import LEVELS, Threshold, bins_of_levels, changed, levels, low_level, unchanged


def every_bfloat16():
    """All finite values, negative ones too."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return values[torch.isfinite(values)]


def test_the_probe_is_bitwise_equality_on_neighbouring_stored_weights():
    """Every finite bfloat16 value against its two neighbours and itself."""
    values = every_bfloat16()
    ordered = values.float().sort().values.to(torch.bfloat16)
    assert not unchanged(ordered[:-1], ordered[1:])[ordered[:-1] != ordered[1:]].any()
    assert unchanged(values, values).all()
    for one, other in ((ordered[:-1], ordered[1:]), (values, values)):
        assert torch.equal(~unchanged(one, other), changed(one, other))


@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-6, 1e-4, 1e-2]))
@settings(max_examples=30, deadline=None)
def test_the_probe_is_bitwise_equality_after_random_updates(seed, size):
    generator = torch.Generator().manual_seed(seed)
    before = (torch.randn(500, generator=generator) * 0.02).bfloat16()
    after = (before.float() + size * torch.randn(500, generator=generator)).bfloat16()
    assert torch.equal(~unchanged(before, after), changed(before, after))
    assert torch.equal(changed(before, after), before.view(torch.int16) != after.view(torch.int16))


def test_zeros_of_either_sign_are_unchanged():
    assert unchanged(torch.tensor([0.0]), torch.tensor([-0.0])).all()
    assert not changed(torch.tensor([0.0]), torch.tensor([-0.0])).any()


def test_neighbours_differ_by_two_to_the_minus_eight_at_least():
    """Relative to the larger one, for normal numbers; attained at powers of two."""
    positive = every_bfloat16().float().sort().values
    normal = positive[positive >= torch.finfo(torch.bfloat16).tiny]
    steps = (normal[1:] - normal[:-1]) / normal[1:]
    assert float(steps.min()) == 2.0**-8 or math.isclose(float(steps.min()), 2.0**-8, rel_tol=0.01)


@given(weight=st.floats(1e-3, 1e3), share=st.floats(0.01, 3))
@settings(max_examples=100, deadline=None)
def test_a_stored_weight_moves_only_by_half_a_unit_in_the_last_place(weight, share):
    assume(abs(share - 1) > 1e-4)  # torch rounds to float32 on the way, which moves a tie
    before = torch.tensor(weight).bfloat16()
    ulp = 2.0 ** (math.floor(math.log2(float(before))) - 7)
    after = (before.double() + share * ulp / 2).bfloat16()
    assert bool(changed(before, after)) == (share > 1)
    assert 0.00195 <= ulp / 2 / float(before) <= 0.00391  # 0.195 to 0.391 %


def test_levels_rank_magnitudes():
    values = every_bfloat16()
    order = values.float().abs().argsort(stable=True)
    ranks = levels(values)[order].long()
    assert (ranks[1:] >= ranks[:-1]).all()
    assert torch.equal(levels(values), levels(-values))


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5])
def test_the_low_level_is_numpys_quantile_with_ties(alpha):
    weight = (torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    level = levels(weight).long()
    mask = level <= low_level(torch.bincount(level, minlength=LEVELS), alpha)
    limit = np.sort(weight.float().abs().numpy())[math.ceil(alpha * 5000) - 1]
    assert np.array_equal(mask.numpy(), weight.float().abs().numpy() <= limit)


def test_bins_are_equal_quantiles_of_distinct_levels():
    counts = torch.zeros(LEVELS, dtype=torch.int64)
    counts[100:200] = 7
    place = bins_of_levels(counts, 10)[100:200]
    assert torch.equal(place, torch.arange(100) // 10)


@given(seed=st.integers(0, 999), count=st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_the_threshold_is_the_kth_largest_exactly(seed, count):
    values = torch.rand(300, generator=torch.Generator().manual_seed(seed)).square()
    values[::7] = 0.0
    found = Threshold(lambda: values.split(64)).largest(count)
    assert found == (float(values.sort(descending=True).values[count - 1]) if count else math.inf)
