import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenwise import batch_of, drawn, gradient, moved

from imgrl.objectives.text import SPINE, TTRL, TextBatch
from imgrl.objectives.text.forking import Limits, entropy_band, fork_mask, limits_of, otsu_threshold

threshold_otsu = pytest.importorskip("skimage.filters").threshold_otsu


@settings(deadline=None)
@given(seed=st.integers(0, 300), share=st.floats(0.2, 0.8))
def test_otsu_separates_two_heaps_as_scikit_image_does(seed, share):
    rng = np.random.default_rng(seed)
    heaps = rng.normal(0.3, 0.05, 200), rng.normal(1.5, 0.1, 200)
    values = np.concatenate([heaps[0][: int(200 * share)], heaps[1]])
    ours = otsu_threshold(torch.tensor(values)).item()
    theirs = threshold_otsu(values, nbins=100)  # the centre of the last bin below
    assert ((values >= ours) == (values > theirs + 0.5 * np.ptp(values) / 100)).all()


@settings(deadline=None)
@given(seed=st.integers(0, 300), shape=st.sampled_from([0.5, 1.0, 3.0]), count=st.integers(5, 200))
@example(seed=87, shape=1.0, count=5)  # two cuts are equally good: scikit-image takes the lower, we the upper
def test_otsu_separates_skewed_entropies_as_well_as_scikit_image(seed, shape, count):
    values = np.random.default_rng(seed).gamma(shape, 0.5, count)
    counts, edges = np.histogram(values, bins=100)
    centres = (edges[:-1] + edges[1:]) / 2
    binned = centres[np.digitize(values, edges[1:-1])]

    def between(upper):
        means = binned[upper].mean() - binned[~upper].mean()
        return upper.sum() * (~upper).sum() * means**2

    ours = fork_mask(torch.tensor(values)[None], torch.ones(1, count, dtype=torch.float64))[0].bool().numpy()
    theirs = values > threshold_otsu(hist=(counts, centres)) + 0.5 * np.ptp(values) / 100
    assert between(ours) == pytest.approx(between(theirs), rel=1e-6)


def test_otsu_of_two_spikes_lies_between_them_and_equal_values_are_all_chosen():
    spikes = torch.tensor([0.1] * 5 + [2.0] * 3)
    assert 0.1 < otsu_threshold(spikes).item() < 2.0
    mask = torch.ones(2, 8)
    entropy = torch.stack([spikes, torch.full((8,), 0.7)])
    assert fork_mask(entropy, mask).tolist() == [[0.0] * 5 + [1.0] * 3, [1.0] * 8]


def test_the_most_uncertain_fifth():
    entropy = torch.arange(10.0)[None]
    assert fork_mask(entropy, torch.ones(1, 10), selection="quantile").tolist() == [[0.0] * 8 + [1.0] * 2]
    half = (torch.arange(10) < 5).float()[None]
    assert fork_mask(entropy, half, selection="quantile").nonzero()[:, 1].tolist() == [4]


def test_limits_by_hand():
    entropy, chosen = torch.tensor([[1.0, 2.0, 4.0, 9.0, 9.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])
    low, high = limits_of(entropy, chosen)
    assert high.tolist() == [2.0] and low.tolist() == pytest.approx([2 - 1.4826])  # deviations 1, 0 and 2
    low, high = limits_of(entropy, chosen, selection="quantile")
    assert high.tolist() == [2.0] and low.tolist() == pytest.approx([1.2])
    assert limits_of(torch.tensor([[0.5, 3.0, 0.5]]), torch.ones(1, 3)).low.item() == pytest.approx(
        0.5, abs=2e-6
    )


def test_the_band_pulls_inwards_and_rests_inside():
    entropy = torch.tensor([[0.5, 1.5, 3.0, 9.0]], requires_grad=True)
    chosen = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    limits = Limits(torch.tensor([1.0]), torch.tensor([2.0]))
    band = entropy_band(entropy, chosen, limits, low=0.1, high=0.2)
    assert band.tolist() == [pytest.approx([0.05, 0.0, 0.2, 0.0])]
    band.sum().backward()
    assert entropy.grad.tolist() == [pytest.approx([-0.1, 0.0, 0.2, 0.0])]  # descent raises, rests, lowers


def test_a_step_of_descent_on_the_band_raises_low_entropy_and_lowers_high_entropy():
    """Through the logits, whose slope of the entropy is ``-p (log p + H)``."""
    logits = torch.tensor([[[3.0, 0.0, 0.0], [0.3, 0.1, 0.0], [1.0, 0.0, -1.0]]], dtype=torch.float64)
    logits.requires_grad_()

    def entropy(x):
        return -(x.softmax(-1) * x.log_softmax(-1)).sum(-1)

    limits = Limits(*(torch.tensor([x], dtype=torch.float64) for x in (0.6, 0.9)))
    before = entropy(logits)
    assert before[0, 0] < 0.6 < before[0, 2] < 0.9 < before[0, 1]
    band = entropy_band(before, torch.ones_like(before), limits, low=1.0, high=1.0)
    slope = torch.autograd.grad(band.sum(), logits)[0]
    p = logits.detach().softmax(-1)
    by_hand = -p * (p.log() + before.detach()[..., None])
    torch.testing.assert_close(slope, torch.tensor([-1.0, 1.0, 0.0])[:, None] * by_hand)
    after = entropy((logits - 0.05 * slope).detach())
    assert after[0, 0] > before[0, 0] and after[0, 1] < before[0, 1] and after[0, 2] == before[0, 2]


def test_other_tokens_get_no_gradient_from_any_term():
    logits, ids, mask, advantage = drawn(11)
    batch = batch_of(logits, ids, mask, advantage, old=moved(logits, 0.3))
    objective = SPINE(band_low=0.3, band_high=0.3, kl_weight=0.5)
    forks = objective.loss(batch).metrics["chosen"]
    assert 0 < forks.sum() < mask.sum()
    mine = gradient(objective, logits, batch)
    assert not mine[forks == 0].any() and mine[forks > 0].abs().sum() > 0


def test_equal_answers_leave_only_band_and_kl():
    logits, ids, mask, advantage = drawn(12)
    batch = batch_of(logits, ids, mask, 0 * advantage)
    assert not gradient(SPINE(band_low=0.0, band_high=0.0, kl_weight=0.0), logits, batch).any()
    assert gradient(SPINE(kl_weight=0.0), logits, batch).any()
    assert gradient(SPINE(band_low=0.0, band_high=0.0), logits, batch).any()


def test_the_kl_is_a_mean_over_the_chosen_tokens():
    logits, ids, mask, advantage = drawn(13)
    batch = batch_of(logits, ids, mask, 0 * advantage)
    objective = SPINE(band_low=0.0, band_high=0.0, kl_weight=1.0)
    out = objective.loss(batch)
    forks = out.metrics["chosen"]
    expected = (batch.reverse_kl * forks).sum() / forks.sum()
    torch.testing.assert_close(out.loss.sum() / mask.sum(), expected)
    plain = TTRL(kl_weight=1.0).loss(batch).loss.sum() / mask.sum()
    torch.testing.assert_close(plain, (batch.reverse_kl * mask).sum() / mask.sum())


@pytest.mark.parametrize("kind", [SPINE, TTRL])
@pytest.mark.parametrize("cuts", [(2, 4), (1, 1, 4), (5, 1), (1,) * 6], ids=str)
def test_the_parts_of_a_batch_add_up_to_its_loss_and_gradient_however_it_is_cut(kind, cuts):
    logits, ids, mask, advantage = drawn(15)
    more = {"band_low": 0.3, "band_high": 0.3} if kind is SPINE else {}
    objective = kind(kl_weight=0.5, **more)

    def loss(rows, ratio):
        batch = batch_of(logits, ids, mask, advantage, old=moved(logits, 0.3))
        fields = {n: x if x is None or n == "step" else x[rows] for n, x in vars(batch).items()}
        part = TextBatch(**(fields | {"tokens_per_chosen": ratio}))
        return objective.loss(part), part

    out, whole = loss(slice(None), None)
    forks = out.metrics.get("chosen", mask)
    total = (out.loss * mask).sum() / mask.sum()
    parts = [
        (loss(slice(start - own, start), mask.sum() / forks.sum())[0].loss).sum() / mask.sum()
        for start, own in zip(np.cumsum(cuts), cuts, strict=True)
    ]
    torch.testing.assert_close(sum(parts), total)
    torch.testing.assert_close(
        *(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (sum(parts), total))
    )
    kl = 0.5 * (whole.reverse_kl * forks).sum() / forks.sum()  # the spec's term, by hand
    without = kind(kl_weight=0.0, **more).loss(whole).loss.sum() / mask.sum()
    torch.testing.assert_close(total - without, kl)


def test_entropy_and_kl_are_logged_as_means_over_the_chosen_tokens():
    logits, ids, mask, advantage = drawn(13)
    batch = batch_of(logits, ids, mask, advantage)
    for objective in (SPINE(), TTRL()):
        metrics = objective.loss(batch).metrics
        forks = fork_mask(batch.entropy, mask) if objective.name == "spine" else mask
        assert objective.name == "ttrl" or 0 < forks.sum() < mask.sum()
        shown = {"anchor_kl": batch.reverse_kl} | (
            {"entropy": batch.entropy} if objective.name == "spine" else {}
        )
        for name, value in shown.items():
            by_hand = (value.detach() * forks).sum() / forks.sum()
            torch.testing.assert_close(metrics[name].mean(), by_hand)


def test_frozen_limits_do_not_follow_the_policy():
    logits, ids, mask, advantage = drawn(14)
    batch = batch_of(logits, ids, mask, 0 * advantage)
    inside = SPINE(selection="all", kl_weight=0.0, frozen_limits=(0.0, 10.0))
    assert not inside.loss(batch).loss.any()
    outside = SPINE(selection="all", kl_weight=0.0, frozen_limits=(0.0, 0.0), band_high=0.1)
    torch.testing.assert_close(outside.loss(batch).loss, 0.1 * batch.entropy * mask)
