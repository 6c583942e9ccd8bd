import numpy as np
import pytest
import torch

from imgrl.analysis.nulls import bernoulli_jaccard, crossed_overlap, matched_jaccard, noise_rates, overlap
from imgrl.analysis.update import LEVELS, bins_of_levels, levels

BINS = 20


@pytest.fixture(scope="module")
def drawn():
    """A mask and an update in which both depend on the quantile, by different laws."""
    rng = np.random.default_rng(0)
    place = rng.integers(0, BINS, 20_000)
    mask = rng.random(20_000) < 0.1 + 0.03 * place
    moved = rng.random(20_000) < 0.9 - 0.04 * place
    return place, mask, moved


def tally(place, mask):
    return torch.from_numpy(np.bincount(place[mask], minlength=BINS))


def figures(place, mask, moved, noise=None):
    everything = tally(place, np.ones_like(mask))
    noise = torch.ones(BINS, dtype=torch.float64) if noise is None else noise
    return overlap(everything, tally(place, mask), tally(place, moved), tally(place, mask & moved), noise)


def shuffled_within(place, moved, rng):
    """The magnitude-matched null, sampled."""
    new = np.zeros_like(moved)
    for each in range(BINS):
        here = np.flatnonzero(place == each)
        new[rng.choice(here, moved[here].sum(), replace=False)] = True
    return new


def test_the_matched_null_is_the_mean_of_shuffles_within_quantiles(drawn):
    place, mask, moved = drawn
    rng = np.random.default_rng(1)
    samples = np.array([(shuffled_within(place, moved, rng) & mask).sum() for _ in range(400)])
    found = figures(place, mask, moved)
    error = samples.std() / np.sqrt(len(samples))
    assert found.by_magnitude == pytest.approx(samples.mean(), abs=4 * error)
    assert found.variance**0.5 == pytest.approx(samples.std(), rel=0.15)
    assert found.hits == (mask & moved).sum() and found.changed == moved.sum()
    assert found.by_density == pytest.approx(moved.sum() * mask.mean())


def test_the_matched_null_of_jaccard_is_that_of_two_shuffles(drawn):
    place, mask, moved = drawn
    rng = np.random.default_rng(2)
    pairs = [(shuffled_within(place, moved, rng), shuffled_within(place, mask, rng)) for _ in range(100)]
    samples = np.array([(a & b).sum() / (a | b).sum() for a, b in pairs])
    shared, union = matched_jaccard(tally(place, np.ones_like(mask)), tally(place, moved), tally(place, mask))
    assert shared / union == pytest.approx(samples.mean(), abs=4 * samples.std() / 10)


def crossed(place, moved, second, mask):
    joint = torch.from_numpy(np.bincount(place * BINS + second, minlength=BINS**2)).view(BINS, BINS)
    return crossed_overlap(joint, tally(place, moved), tally(second, mask))


def test_the_null_of_two_bases_is_that_of_shuffles_within_the_quantiles_of_either(drawn):
    place, mask, moved = drawn
    rng = np.random.default_rng(3)
    second = np.where(rng.random(len(place)) < 0.5, place, rng.integers(0, BINS, len(place)))  # half related
    pairs = [(shuffled_within(place, moved, rng), shuffled_within(second, mask, rng)) for _ in range(100)]
    samples = np.array([(a & b).sum() for a, b in pairs])
    found = crossed(place, moved, second, mask)
    assert found == pytest.approx(samples.mean(), abs=4 * samples.std() / 10)
    assert abs(found - moved.sum() * mask.mean()) > 20 * samples.std() / 10  # not Bernoulli's


def test_the_null_of_two_bases_by_hand():
    """6 small weights stay small, 2 of 8 small ones and 2 of 8 large ones change places; halves of the small change."""
    joint = torch.tensor([[6, 2], [2, 6]])
    assert crossed_overlap(joint, torch.tensor([4, 0]), torch.tensor([4, 0])) == pytest.approx(6 / 4)
    assert crossed_overlap(joint, torch.tensor([4, 2]), torch.tensor([4, 0])) == pytest.approx(6 / 4 + 2 / 8)


def test_the_null_of_two_bases_lies_between_that_of_one_and_chance(drawn):
    place, mask, moved = drawn
    same, _ = matched_jaccard(tally(place, np.ones_like(mask)), tally(place, moved), tally(place, mask))
    assert crossed(place, moved, place, mask) == pytest.approx(same)
    # Every quantile of the one spread evenly over those of the other: no relation.
    place, second = np.repeat(np.arange(BINS), BINS), np.tile(np.arange(BINS), BINS)
    assert crossed(place, moved[:400], second, mask[:400]) == pytest.approx(
        moved[:400].sum() * mask[:400].mean()
    )


def test_a_mask_cut_by_magnitude_is_always_on_its_matched_null(drawn):
    place, _, moved = drawn
    assert figures(place, place < 6, moved).report()["over_matched"] == pytest.approx(1)


def test_overlaps_add_up(drawn):
    place, mask, moved = drawn
    half = np.arange(len(place)) < 10_000
    whole = figures(place, mask, moved)
    parts = figures(place[half], mask[half], moved[half]) + figures(place[~half], mask[~half], moved[~half])
    assert (parts.hits, parts.changed) == (whole.hits, whole.changed)


def test_nothing_changed_has_no_shares(drawn):
    place, mask, _ = drawn
    found = figures(place, mask, np.zeros_like(mask)).report()
    assert all(value is None for value in found.values())


def test_bernoulli_masks():
    assert bernoulli_jaccard(0.5, 0.5) == pytest.approx(1 / 3)
    assert bernoulli_jaccard(1.0, 1.0) == 1 and bernoulli_jaccard(0.0, 0.0) is None


@pytest.mark.parametrize("size", [1e-5, 3e-5, 3e-4])
def test_noise_rates_are_those_of_rounded_noise(size):
    generator = torch.Generator().manual_seed(0)
    before = (torch.randn(400_000, generator=generator) * 0.02).bfloat16()
    after = (before.float() + size * torch.randn(400_000, generator=generator)).bfloat16()
    level, moved = levels(before).long(), before != after
    counts = torch.bincount(level, minlength=LEVELS)
    place = bins_of_levels(counts, BINS)
    observed = torch.bincount(place[level], moved.double(), BINS) / torch.bincount(
        place[level], minlength=BINS
    )
    expected = noise_rates(counts, place, BINS, int(moved.sum()))
    torch.testing.assert_close(expected, observed, rtol=0, atol=0.012)  # 20,000 a bin: four deviations
