import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imgrl.errors import ModelError
from imgrl.policies.adapters import FullWeights


@pytest.fixture(params=["lora", "full"])
def train(request: pytest.FixtureRequest) -> str:
    return request.param


def test_names_start_equal_and_part_when_current_trains(
    load: Any, disturb: Any, example: Any, train: str
) -> None:
    policy = load("sd3", train=train, names=["old", "frozen"])
    x, sigma, cond = example(policy)
    start = policy.velocity(x, sigma, cond).detach()
    for name in ("old", "frozen"):
        copied = policy.velocity(x, sigma, cond, weights=name)
        torch.testing.assert_close(copied, start, rtol=0, atol=1e-6)  # kernels may round by memory alignment
    disturb(policy)
    assert not torch.equal(policy.velocity(x, sigma, cond), start)
    for name in ("old", "frozen"):
        copied = policy.velocity(x, sigma, cond, weights=name)
        torch.testing.assert_close(copied, start, rtol=0, atol=1e-6)


def test_only_current_has_gradients_and_switching_keeps_them(load: Any, example: Any, train: str) -> None:
    policy = load("sd3", train=train, names=["old", "frozen"])
    x, sigma, cond = example(policy)
    for name in ("old", "frozen"):
        assert not policy.velocity(x, sigma, cond, weights=name).requires_grad
    prediction = policy.velocity(x, sigma, cond)
    assert prediction.requires_grad
    policy.velocity(x, sigma, cond, weights="old")  # between forward and backward, as in a training step
    prediction.square().mean().backward()
    assert all(p.requires_grad for p in policy.weights.parameters())
    assert any(p.grad is not None and p.grad.any() for p in policy.weights.parameters())
    copies = policy.weights.tensors("old").values()
    assert all(not t.requires_grad and t.grad is None for t in copies)
    trainable = [p for p in policy.transformer.parameters() if p.requires_grad]
    assert len(trainable) == len(policy.weights.parameters())


def test_gradient_is_that_of_current_even_if_copies_ran_in_between(
    load: Any, disturb: Any, example: Any, train: str
) -> None:
    policy = load("sd3", train=train, names=["old"], gradient_checkpointing=True)
    disturb(policy)
    x, sigma, cond = example(policy)
    grads = []
    for interleaved in (False, True):
        policy.transformer.zero_grad()
        loss = policy.velocity(x, sigma, cond).square().mean()
        if interleaved:
            policy.velocity(x, sigma, cond, weights="old")
        loss.backward()
        grads.append([None if p.grad is None else p.grad.clone() for p in policy.weights.parameters()])
    for a, b in zip(*grads, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_use_restores_after_an_error_and_nests(load: Any, train: str) -> None:
    weights = load("sd3", train=train, names=["old"]).weights
    with weights.use("old"):
        with weights.use("current"):
            assert weights.active == "current"
        assert weights.active == "old" and not torch.is_grad_enabled()
    with pytest.raises(RuntimeError), weights.use("old"):
        raise RuntimeError
    assert weights.active == "current" and torch.is_grad_enabled()


def test_use_inside_sees_and_updates_the_right_tensors(load: Any, train: str) -> None:
    weights = load("sd3", train=train, names=["old"]).weights
    with weights.use("old"):
        weights.blend("old", 0.5)
        current = {k: t.clone() for k, t in weights.state_dict("current").items()}
        with torch.no_grad():
            for tensor in weights.tensors("old").values():
                tensor.add_(1.0)
    for path, tensor in weights.state_dict("current").items():
        assert torch.equal(tensor, current[path])
        assert torch.equal(weights.state_dict("old")[path], current[path] + 1.0)


@given(decay=st.floats(0, 1), a=st.floats(-10, 10), b=st.floats(-10, 10))
def test_blend_is_the_weighted_mean(decay: float, a: float, b: float) -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    weights = FullWeights(network, ["old"])
    with torch.no_grad():
        network.weight.fill_(a)
        weights.tensors("old")["weight"].fill_(b)
    weights.blend("old", decay)
    assert float(weights.tensors("old")["weight"]) == pytest.approx(decay * b + (1 - decay) * a, abs=1e-5)


def test_lora_blends_its_factors(load: Any, disturb: Any) -> None:
    policy = load("sd3", names=["old"])
    before = {k: t.clone() for k, t in policy.weights.state_dict("old").items()}
    disturb(policy)
    policy.weights.blend("old", 0.75)
    for path, tensor in policy.weights.state_dict("old").items():
        expected = 0.75 * before[path] + 0.25 * policy.weights.state_dict()[path]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
    policy.weights.copy("current", "old")
    assert all(
        torch.equal(t, policy.weights.state_dict()[k]) for k, t in policy.weights.state_dict("old").items()
    )


def test_state_dict_round_trip_is_bitwise(load: Any, disturb: Any, example: Any, train: str) -> None:
    first, second = load("sd3", train=train, names=["old"]), load("sd3", train=train, names=["old"])
    disturb(first)
    x, sigma, cond = example(first)
    second.weights.load_state_dict("old", first.weights.state_dict("current"))
    ours, theirs = first.velocity(x, sigma, cond), second.velocity(x, sigma, cond, weights="old")
    assert torch.equal(ours, theirs)


def test_switching_takes_less_than_a_millisecond(load: Any, train: str) -> None:
    weights = load("sd3", train=train, names=["old"]).weights
    times = []
    for _ in range(50):
        start = time.perf_counter()
        with weights.use("old"):
            pass
        times.append(time.perf_counter() - start)
    assert sorted(times)[25] < 1e-3


def test_copies_exist_only_when_named(load: Any) -> None:
    policy = load("sd3")
    assert policy.weights.names == ("current", "frozen")
    count = sum(p.numel() for p in policy.transformer.parameters())
    policy.weights.add("ema")
    policy.weights.add("ema")
    added = sum(p.numel() for p in policy.transformer.parameters()) - count
    assert added == sum(p.numel() for p in policy.weights.parameters())
    assert policy.weights.names == ("current", "ema", "frozen")


def test_wrong_names_and_tensors_are_refused(load: Any) -> None:
    weights = load("sd3", names=["old"]).weights
    with (
        pytest.raises(ModelError, match="no weights named 'sampling'.*current, old, frozen"),
        weights.use("sampling"),
    ):
        pass
    for name in ("current", "frozen"):
        with pytest.raises(ModelError, match="cannot be overwritten"):
            weights.blend(name, 0.5)
    with pytest.raises(ValueError, match="decay in"):
        weights.blend("old", 1.5)
    state = weights.state_dict()
    path = next(iter(state))
    with pytest.raises(ModelError, match="1 tensors are missing"):
        weights.load_state_dict("old", {k: t for k, t in state.items() if k != path})
    with pytest.raises(ModelError, match="rank"):
        weights.load_state_dict("old", {**state, path: state[path][:2]})


def test_without_training_every_name_is_the_pretrained_network(load: Any, example: Any) -> None:
    policy = load("sd3", train="none")
    x, sigma, cond = example(policy)
    assert policy.weights.parameters() == []
    velocities = [policy.velocity(x, sigma, cond, weights=n) for n in ("current", "sampling", "frozen")]
    assert all(torch.equal(v, velocities[0]) and not v.requires_grad for v in velocities)
