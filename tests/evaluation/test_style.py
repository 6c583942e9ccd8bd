"""Style figures against closed forms and distributions whose distance is known."""

import pytest
import torch

from imgrl.evaluation.style import gram_distance, kid, nearest_cosine, probe_share, style_figures


def normal(*shape, seed=0, shift=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift


def test_kid_of_three_points_by_hand():
    # d = 1: k(a, b) = (ab + 1)^3; x = {0, 1}, y = {2, 3}: 1 + 343 - 2 mean(1, 1, 27, 64)
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    assert kid(x, y).item() == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)


def test_kid_is_unbiased_and_sees_a_shift():
    same = torch.stack([kid(normal(60, 4, seed=2 * s), normal(60, 4, seed=2 * s + 1)) for s in range(200)])
    error = same.std() / 200**0.5
    assert abs(same.mean()) < 3 * error
    assert kid(normal(60, 4), normal(60, 4, seed=1, shift=1.0)) > 10 * same.std()
    with pytest.raises(ValueError, match="two images"):
        kid(normal(1, 4), normal(5, 4))


def test_gram_knows_texture_and_not_layout():
    patches = normal(5, 9, 3)
    moved = patches[:, torch.randperm(9, generator=torch.Generator().manual_seed(0))]
    assert gram_distance(moved, patches).item() == pytest.approx(0, abs=1e-12)
    assert gram_distance(2 * patches, patches).item() == pytest.approx(3)  # Gram grows by 4


def test_the_probe_tells_style_from_other():
    style, other = normal(80, 6, shift=1.0), normal(80, 6, seed=1, shift=-1.0)
    assert probe_share(normal(50, 6, seed=2, shift=1.0), style=style, other=other) > 0.95
    assert probe_share(normal(50, 6, seed=3, shift=-1.0), style=style, other=other) < 0.05
    half = torch.cat([normal(50, 6, seed=4, shift=1.0), normal(50, 6, seed=5, shift=-1.0)])
    assert probe_share(half, style=style, other=other).item() == pytest.approx(0.5, abs=0.05)
    # sides of unequal number weigh alike: the middle stays the middle
    assert probe_share(normal(400, 6, seed=6), style=style, other=other[:8]).item() == pytest.approx(
        0.5, abs=0.2
    )


def test_copies_are_found():
    train, heldout = normal(40, 16), normal(40, 16, seed=1)
    assert torch.allclose(nearest_cosine(train[:3], train), torch.ones(3))

    def features(pooled):
        return pooled, pooled[:, None]

    sets = {
        "base": features(normal(40, 16, seed=2, shift=-2)),
        "train": features(train),
        "heldout": features(heldout),
    }
    fresh = style_figures(features(normal(40, 16, seed=3)), **sets)
    copies = style_figures(features(torch.cat([train[:20], normal(20, 16, seed=4)])), **sets)
    assert fresh.copied <= 0.1 and copies.copied == pytest.approx(0.5, abs=0.1)
    assert set(fresh.as_dict()) == {"probe", "gram", "kid", "copied"}
