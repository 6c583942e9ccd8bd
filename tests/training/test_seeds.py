"""Keys of whole numbers: reproducible, independent of company, never twice the same."""

import itertools

import pytest
import torch
from scipy import stats

from imgrl.training.seeds import IMAGE, NOISE, TIMES, derive, generator, normal


def test_a_key_always_means_the_same_seed():
    # recorded: numpy promises that SeedSequence never changes
    assert derive(0, IMAGE, 0, 0) == 2918264622725855778
    assert derive(5, NOISE, 3, 4, 1) == 2321036116481969776
    assert generator(7, TIMES, 3).initial_seed() == derive(7, TIMES, 3)
    assert all(0 <= derive(5, IMAGE, r, 2) < 2**63 for r in range(50))


def test_no_two_keys_of_a_run_share_a_seed():
    keys = [(9, kind, round, row) for kind in (IMAGE, TIMES) for round in range(40) for row in range(40)]
    keys += [(9, NOISE, round, row, level) for round, row, level in itertools.product(range(15), repeat=3)]
    assert len({derive(*key) for key in keys}) == len(keys)


def test_noise_depends_on_its_own_key_alone():
    keys = [(1, NOISE, 2, row, 0) for row in range(6)]
    together = normal((3, 2), keys)
    alone = torch.cat([normal((3, 2), [key]) for key in reversed(keys)]).flip(0)
    assert torch.equal(together, alone)
    torch.manual_seed(0)
    assert torch.equal(together, normal((3, 2), keys))


@pytest.mark.parametrize("seed", [0, 2**40])
def test_noise_is_standard_normal_over_keys(seed):
    # one number from each of 4,000 neighbouring keys: neighbours must not be related
    drawn = normal((1,), [(seed, NOISE, 0, row, 0) for row in range(4000)]).flatten().numpy()
    assert stats.kstest(drawn, "norm").pvalue > 0.01
    assert abs(stats.pearsonr(drawn[:-1], drawn[1:]).statistic) < 0.05
