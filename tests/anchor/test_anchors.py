"""Contracts of weights that stay behind, on a toy softmax policy and on a toy Gaussian velocity model alike."""

import pytest
import torch
from jaxtyping import TypeCheckError

from imgrl.anchor import (
    AdapterOff,
    Constant,
    Ema,
    Frozen,
    Guided,
    Linear,
    Mixture,
    Ramp,
    Snapshot,
    Switch,
    blend,
    categorical_kl,
    velocity_gap,
)


def softmax_gap(weights, anchor):
    features = torch.linspace(-1, 1, 12).view(4, 3)
    return categorical_kl(features @ weights, features @ anchor)


def gaussian_gap(weights, anchor):
    x, t = torch.linspace(-2, 2, 6)[:, None], 0.4
    mean, mean_anchor = weights.sum(), anchor.sum()
    return velocity_gap(
        *((-m + (t - (1 - t)) / ((1 - t) ** 2 + t**2) * (x - (1 - t) * m)) for m in (mean, mean_anchor))
    )


SPACES = pytest.mark.parametrize("gap", [softmax_gap, gaussian_gap])


def follow(rule, steps, gap):
    """Distance to the copy after each optimiser step of a moving policy."""
    weights = torch.zeros(3, 5)
    copy, distances = weights.clone(), []
    for step in range(1, steps + 1):
        weights = weights + torch.arange(15.0).view(3, 5) * 0.01
        blend([copy], [weights], rule.decay(step))
        distances.append(gap(weights, copy).mean().item())
    return distances


@SPACES
@pytest.mark.parametrize("rule", [Frozen(), AdapterOff(), Ema(schedule=Constant(value=1.0))])
def test_a_frozen_copy_falls_behind_and_never_moves(rule, gap):
    distances = follow(rule, 4, gap)
    assert distances == sorted(distances) and distances[0] > 0
    # After one and after two steps of equal size the frozen velocity gap is 1 : 4.
    if gap is gaussian_gap:
        assert distances[1] / distances[0] == pytest.approx(4, rel=1e-4)


@SPACES
def test_ema_without_memory_is_the_policy(gap):
    assert follow(Ema(schedule=Constant(value=0.0)), 4, gap) == pytest.approx([0.0] * 4, abs=1e-9)


@SPACES
def test_snapshot_changes_only_when_due(gap):
    distances = follow(Snapshot(every=3), 7, gap)
    assert [d < 1e-9 for d in distances] == [False, False, True, False, False, True, False]


@SPACES
def test_switch_starts_its_next_rule_from_the_policy(gap):
    rule = Switch(phases=((0, Frozen()), (3, Ema(schedule=Linear(first=1.0, last=1.0, steps=1)))))
    distances = follow(rule, 5, gap)
    assert [d < 1e-9 for d in distances] == [False, False, True, False, False]


def test_ema_by_hand():
    copy, current = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 6.0])]
    blend(copy, current, Ema(schedule=Ramp(value=0.75)).decay(1))
    assert copy[0].tolist() == [1.5, 3.0]  # 0.75 * (1, 2) + 0.25 * (3, 6)


def test_ema_of_a_resting_policy_closes_the_gap_geometrically():
    copy, current = [torch.tensor([4.0], dtype=torch.float64)], [torch.tensor([1.0])]
    for step in range(25):
        blend(copy, current, Ema(schedule=Ramp(value=0.9)).decay(step))
    assert copy[0].item() == pytest.approx(1 + 3 * 0.9**25, rel=1e-12)


def test_blend_is_in_place_without_gradient_and_exact_at_its_ends():
    current = [torch.tensor([1.0], requires_grad=True)]
    copy = [torch.tensor([torch.inf])]
    held = copy[0]
    blend(copy, current, 1.0)
    assert held.item() == torch.inf
    blend(copy, current, 0.0)
    assert held.item() == 1.0 and copy[0] is held and not held.requires_grad


def test_blend_refuses_what_does_not_match():
    with pytest.raises(ValueError, match="matching tensors"):
        blend([torch.zeros(2)], [torch.zeros(3)], 0.5)
    with pytest.raises(ValueError, match="matching tensors"):
        blend([torch.zeros(2)], [], 0.5)
    with pytest.raises(ValueError, match="decay"):
        blend([torch.zeros(2)], [torch.zeros(2)], 1.5)


def test_guided_ends():
    cond, uncond = torch.tensor([[2.0]], requires_grad=True), torch.tensor([[1.0]])
    assert torch.equal(Guided(scale=1.0)(cond, uncond), cond)
    assert torch.equal(Guided(scale=0.0)(cond, uncond), uncond)
    assert Guided(scale=4.5)(cond, uncond).item() == 5.5
    assert not Guided()(cond, uncond).requires_grad


@pytest.mark.parametrize("space", ["log", "prob"])
def test_mixture_with_all_weight_on_one_is_that_one(space):
    one, two = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    torch.testing.assert_close(Mixture(weights=(1.0, 0.0), space=space)(one, two), one)
    torch.testing.assert_close(Mixture(weights=(0.0, 1.0), space=space)(one, two), two)
    mixed = Mixture(weights=(0.3, 0.7), space=space)(one, two)
    torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(4))


def test_mixtures_by_hand():
    one, two = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
    mixed = Mixture(weights=(0.5, 0.5), space="prob")(one, two).exp()
    torch.testing.assert_close(mixed, torch.tensor([[0.65, 0.35]]))
    # geometric: sqrt(.5 * .8) : sqrt(.5 * .2) = 2 : 1
    mixed = Mixture(weights=(0.5, 0.5), space="log")(one, two).exp()
    torch.testing.assert_close(mixed, torch.tensor([[2 / 3, 1 / 3]]))


@pytest.mark.parametrize(("space", "direction"), [("log", "reverse"), ("prob", "forward")])
def test_mixture_is_the_point_of_least_mean_divergence(space, direction):
    # sum_i w_i KL(x || a_i) = KL(x || geometric mixture) + const, and the forward twin with the arithmetic one.
    generator = torch.Generator().manual_seed(1)
    one, two, x, y = torch.randn(4, 3, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    mixed = Mixture(weights=(0.3, 0.7), space=space)(one, two)

    def excess(at):
        mean = 0.3 * categorical_kl(at, one, direction=direction)
        mean = mean + 0.7 * categorical_kl(at, two, direction=direction)
        return mean - categorical_kl(at, mixed, direction=direction)

    torch.testing.assert_close(excess(x), excess(y))


def test_wrong_descriptions_are_refused():
    for build in (
        lambda: Snapshot(every=0),
        lambda: Switch(phases=((1, Frozen()),)),
        lambda: Mixture(weights=(0.5, 0.6)),
    ):
        with pytest.raises(ValueError, match="Expected"):
            build()
    with pytest.raises((ValueError, TypeCheckError)):
        Mixture(space="sum")
    with pytest.raises(ValueError, match="Expected 2 anchors"):
        Mixture()(torch.zeros(1, 2))
