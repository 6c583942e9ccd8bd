import pytest
import torch
from torch import nn

from imgrl.errors import CheckpointError
from imgrl.training.text.copies import WeightCopy


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))


def moved(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)


def test_a_snapshot_speaks_as_the_model_did_and_gives_its_weights_back():
    net = network().train()
    x = torch.ones(2, 3)
    then = net.eval()(x)
    snapshot = WeightCopy(net.train())
    moved(net)
    now = [p.clone() for p in net.parameters()]
    with snapshot.applied(net):
        assert torch.equal(net(x), then) and not net.training and not net(x).requires_grad
    assert net.training and all(torch.equal(a, b) for a, b in zip(net.parameters(), now, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9, 1.0])
def test_a_copy_follows_a_model_and_another_copy(decay):
    net = network()
    first, second = WeightCopy(net), WeightCopy(net)
    before = [p.clone() for p in net.parameters()]
    moved(net)
    first.follow(net, decay)
    second.follow(first, 0.0)
    for own, old, new in zip(first.tensors.values(), before, net.parameters(), strict=True):
        torch.testing.assert_close(own, decay * old + (1 - decay) * new.detach())
    assert all(torch.equal(second.tensors[name], first.tensors[name]) for name in first.tensors)
    assert not any(tensor.requires_grad for tensor in first.tensors.values())


def test_a_copy_of_another_precision_speaks_in_the_models_and_stays_exact():
    """As under DeepSpeed, which rounds and moves a model after its anchors were copied."""
    net = nn.Linear(3, 4)
    snapshot = WeightCopy(net)
    exact = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    net.bfloat16()
    moved(net)
    live = net.weight.data
    with snapshot.applied(net):
        assert torch.equal(net.weight, exact["weight"].bfloat16())
        assert net(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert net.weight.data_ptr() == live.data_ptr() and net.weight.dtype == torch.bfloat16
    for name, tensor in snapshot.tensors.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, exact[name])
    snapshot.renew(net)
    assert torch.equal(snapshot.tensors["weight"], live.float())


def test_a_copy_moves_to_the_models_device_and_stays_there():
    net = nn.Linear(3, 4)
    snapshot = WeightCopy(net)
    net.to("meta")
    with snapshot.applied(net):
        assert net(torch.ones(2, 3, device="meta")).device.type == "meta"
    assert {tensor.device.type for tensor in snapshot.tensors.values()} == {"meta"}


def test_weights_come_back_after_an_error():
    net = network()
    snapshot = WeightCopy(net)
    moved(net)
    now = net[0].weight.clone()
    with pytest.raises(RuntimeError), snapshot.applied(net):
        raise RuntimeError
    assert torch.equal(net[0].weight, now)


def test_the_gradient_of_a_later_pass_is_the_live_models():
    net, other = network().eval(), network().eval()
    snapshot = WeightCopy(net)
    for one in (net, other):
        moved(one)
    with snapshot.applied(net):
        net(torch.ones(2, 3))
    for one in (net, other):
        one(torch.ones(2, 3)).square().sum().backward()
    assert torch.equal(net[0].weight.grad, other[0].weight.grad)


def test_renewing_makes_both_equal_and_later_steps_part_them():
    net = network()
    first, second = WeightCopy(net), WeightCopy(net)
    moved(net)
    first.renew(net)
    assert torch.equal(first.tensors["0.weight"], net[0].weight)
    second.renew(first)
    moved(net)
    assert torch.equal(first.tensors["0.weight"] + 1, net[0].weight)
    assert torch.equal(first.tensors["0.weight"], second.tensors["0.weight"])


def test_only_what_trains_is_kept():
    net = network()
    net[0].requires_grad_(False)
    assert set(WeightCopy(net).tensors) == {"2.weight", "2.bias"}


def test_states_round_trip_and_those_of_another_model_are_refused():
    net = network()
    snapshot = WeightCopy(net)
    state = {k: t.clone() for k, t in snapshot.state_dict().items()}
    moved(net)
    snapshot.renew(net)
    snapshot.load_state_dict(state)
    assert all(torch.equal(snapshot.tensors[k], state[k]) for k in state)
    with pytest.raises(CheckpointError, match="1 tensors differ"):
        snapshot.load_state_dict({k: t for k, t in state.items() if k != "2.bias"})
