import pytest
import torch
from torch import nn

from imgrl.analysis.watch import DriftWatch


def model():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(24, 24) for _ in range(20)))


def test_nothing_has_moved_at_the_start():
    found = DriftWatch(model().named_parameters(), k=4).measure()
    assert found == {
        "weights/sparsity": 1,
        "weights/relative_update": 0,
        "weights/spectral_drift": 0,
        "weights/largest_angle": 0,
    }


@torch.no_grad()
def test_scaled_weights_drift_by_their_factor_and_do_not_rotate():
    network = model()
    watch = DriftWatch(network.named_parameters(), k=4)
    for parameter in network.parameters():
        parameter.mul_(1.1)
    found = watch.measure()
    assert found["weights/spectral_drift"] == pytest.approx(0.1, rel=1e-4)
    assert found["weights/relative_update"] == pytest.approx(0.1, rel=1e-4)
    assert found["weights/sparsity"] == pytest.approx(0, abs=1e-3) and found["weights/largest_angle"] < 0.01


@torch.no_grad()
@pytest.mark.parametrize(("wide", "told"), [(24, False), (30, True)])
def test_only_matrices_that_can_turn_count_for_the_angle(wide, told):
    """Of the square ones k takes in all directions; the mean is that of the others alone."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, wide))
    watches = [DriftWatch(part.named_parameters(), k=64) for part in (network, network[1])]
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) / 100)
    both, own = (watch.measure().get("weights/largest_angle") for watch in watches)
    assert both == own and (own is not None and own > 0.1) == told


@torch.no_grad()
def test_few_matrices_spread_over_the_model_are_watched():
    network = model()
    watch = DriftWatch(network.named_parameters(), most=4, k=4)
    network[1].weight.mul_(2)  # not one of 0, 5, 10, 15
    assert watch.measure()["weights/sparsity"] == 1
    network[15].weight.mul_(2)
    assert watch.measure()["weights/sparsity"] == pytest.approx(0.75)
