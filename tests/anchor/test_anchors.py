import pytest
import torch
from jaxtyping import TypeCheckError

from imgrl.anchor import Ema, Frozen, Mixture, Ramp, Snapshot, Switch, blend


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


def test_mixtures_by_hand():
    one, two = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
    mixed = Mixture(weights=(0.5, 0.5), space="prob")(one, two).exp()
    torch.testing.assert_close(mixed, torch.tensor([[0.65, 0.35]]))
    # geometric: sqrt(.5 * .8) : sqrt(.5 * .2) = 2 : 1
    mixed = Mixture(weights=(0.5, 0.5), space="log")(one, two).exp()
    torch.testing.assert_close(mixed, torch.tensor([[2 / 3, 1 / 3]]))


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
