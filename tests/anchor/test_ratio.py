import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from imgrl.anchor import (
    Mixture,
    anchored_softmax,
    center,
    centered_match,
    denoising_gain,
    group_mean,
    group_softmax,
    log_ratio,
    sampled_kl,
)


def rows(seed=0, n=12, groups=3):
    generator = torch.Generator().manual_seed(seed)
    ratio, target = torch.randn(2, n, generator=generator, dtype=torch.float64)
    group = torch.arange(n) % groups * 7 - 3  # numbers are names: neither dense, nor sorted, nor positive
    return ratio, target, group


def test_group_mean_by_hand():
    x, group = torch.tensor([1.0, 10.0, 3.0, 20.0]), torch.tensor([5, 2, 5, 2])
    assert group_mean(x, group).tolist() == [2.0, 15.0, 2.0, 15.0]
    weights = torch.tensor([0.25, 1.0, 0.75, 0.0])
    assert group_mean(x, group, weights=weights).tolist() == [2.5, 10.0, 2.5, 10.0]
    assert center(x, group).tolist() == [-1.0, -5.0, 1.0, 5.0]


def test_softmax_sums_to_one_in_each_group():
    x, _, group = rows()
    weights = group_softmax(x, group, temperature=0.3)
    for number in group.unique():
        expected = (x[group == number] / 0.3).softmax(0)
        torch.testing.assert_close(weights[group == number], expected)


def test_the_mean_is_a_constant_to_the_gradient():
    x, _, group = rows()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(center(x, group).square().sum(), x)
    torch.testing.assert_close(gradient, 2 * center(x.detach(), group))
    (gradient,) = torch.autograd.grad(center(x, group)[0], x)
    assert gradient.tolist() == [1.0] + [0.0] * 11


@pytest.mark.parametrize("kind", ["mse", "bce"])
@pytest.mark.parametrize("temperature", [None, 0.2])
def test_two_ranks_equal_one(kind, temperature):
    ratio, target, group = rows()
    options = {"beta": 1.5, "kind": kind, "temperature": temperature}
    whole = ratio.clone().requires_grad_()
    expected = centered_match(whole, target, group, **options)
    expected.sum().backward()

    barrier, slots = threading.Barrier(2), [torch.empty(0), torch.empty(0)]
    parts = [slice(0, 5), slice(5, 12)]  # uneven, and every group lives on both
    results = [None, None]

    def work(rank):
        def gather(x):
            assert not x.requires_grad
            slots[rank] = x
            barrier.wait(timeout=20)
            joined = torch.cat(slots)
            barrier.wait(timeout=20)
            return joined

        local = ratio[parts[rank]].clone().requires_grad_()
        loss = centered_match(local, target[parts[rank]], group[parts[rank]], gather=gather, **options)
        loss.sum().backward()
        results[rank] = (loss.detach(), local.grad)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    loss, gradient = (torch.cat(part) for part in zip(*results, strict=True))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(gradient, whole.grad, rtol=1e-13, atol=1e-15)


@given(seed=st.integers(0, 999))
def test_match_is_half_the_mean_squared_pairwise_error(seed):
    # E8: mean_i d~_i^2 = 1/2 mean_ij (d_i - d_j)^2 with d = beta R - q, in each group
    ratio, target, group = rows(seed)
    loss = centered_match(ratio, target, group, beta=0.7)
    d = 0.7 * ratio - target
    for number in group.unique():
        mine = d[group == number]
        pairs = 0.5 * (mine[:, None] - mine[None, :]).square().mean()
        torch.testing.assert_close(loss[group == number].mean(), pairs)


def test_stop_gradient_on_the_mean_matters_only_with_softmax_weights():
    # E8, second half: with plain means the residuals sum to zero, so a gradient through the mean adds nothing.
    ratio, target, group = rows()
    ratio.requires_grad_()
    mean = torch.stack([ratio[group == g].mean() for g in group])
    aim = center(target, group)
    (through,) = torch.autograd.grad(((ratio - mean) - aim).square().sum(), ratio)
    (stopped,) = torch.autograd.grad(centered_match(ratio, target, group, beta=1.0).sum(), ratio)
    torch.testing.assert_close(stopped, through, rtol=0, atol=1e-14)

    weights = group_softmax(target, group, temperature=0.1)
    mean = torch.stack([(weights * ratio)[group == g].sum() for g in group])
    aim = center(target, group, weights=weights)
    (through,) = torch.autograd.grad(((ratio - mean) - aim).square().sum(), ratio)
    residual = center(ratio, group, weights=weights) - aim
    (stopped,) = torch.autograd.grad(residual.square().sum(), ratio)
    assert (stopped - through).norm() > 0.01 * through.norm()


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_a_high_temperature_is_the_plain_mean(kind):
    # E22
    ratio, target, group = rows()
    gradients = []
    for temperature in (None, 1e6):
        leaf = ratio.clone().requires_grad_()
        loss = centered_match(leaf, target, group, beta=1.0, kind=kind, temperature=temperature)
        gradients.append(torch.autograd.grad(loss.mean(), leaf)[0])
    # both directions together: of the tilt only its square remains, 1e-12
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


def test_permuting_and_duplicating_groups_changes_nothing():
    ratio, target, group = rows()
    loss = centered_match(ratio, target, group, beta=1.0, temperature=0.4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    moved = centered_match(ratio[order], target[order], group[order], beta=1.0, temperature=0.4)
    torch.testing.assert_close(moved, loss[order])
    twice = centered_match(
        *(torch.cat([x, x]) for x in (ratio, target)),
        torch.cat([group, group + 100]),
        beta=1.0,
        temperature=0.4,
    )
    torch.testing.assert_close(twice.mean(), loss.mean())


def test_temperature_zero_is_refused():
    ratio, target, group = rows()
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature > 0"):
            centered_match(ratio, target, group, beta=1.0, temperature=temperature)
    with pytest.raises((ValueError, TypeCheckError)):
        centered_match(ratio, target[:3], group, beta=1.0)
    with pytest.raises((ValueError, TypeCheckError)):
        centered_match(ratio, target, group, beta=1.0, kind="huber")


def velocities(seed=0, dtype=torch.float64):
    return torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("adaptive", [True, False])
def test_gain_is_zero_at_equality_and_only_the_policy_has_a_gradient(adaptive):
    # E21, first half
    v, _, target = velocities()
    v, v_old, target = (
        v.requires_grad_(),
        v.detach().clone().requires_grad_(),
        target.clone().requires_grad_(),
    )
    gain = denoising_gain(v, v_old, target, adaptive=adaptive)
    assert gain.tolist() == [0.0] * 4
    gain.sum().backward()
    assert v.grad.abs().sum() > 0 and v_old.grad is None and target.grad is None


def test_gain_by_hand():
    v, v_old, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]]), torch.zeros(1, 2)
    # errors 1, 3: mean square 5, mean size 2; errors 2, 4: mean square 10, mean size 3
    assert denoising_gain(v, v_old, target, adaptive=False).item() == 5.0
    assert denoising_gain(v, v_old, target).item() == pytest.approx(10 / 3 - 5 / 2)


def test_the_adaptive_weight_gets_no_gradient():
    v, v_old, target = velocities()
    v = v.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(denoising_gain(v, v_old, target).sum(), v)
    error = (v - target).detach()
    weight = error.abs().mean((1, 2), keepdim=True)
    torch.testing.assert_close(gradient, -2 * error / 6 / weight)  # as if w were a number


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: denoising_gain(*x),
        lambda x: log_ratio(x[0], x[1], mask=torch.ones(4, 6)),
        lambda x: sampled_kl(x[0], estimator="k3"),
        lambda x: anchored_softmax(x[0], temperature=0.3),
        lambda x: group_softmax(x[0, 0], torch.tensor([0, 0, 0, 1, 1, 1]), temperature=0.3),
        lambda x: Mixture(space="log")(*x[:2]),
        lambda x: Mixture(space="prob")(*x[:2]),
    ],
)
def test_half_precision_is_computed_in_float32(compute):
    half = velocities().flatten(2).bfloat16()
    value = compute(half)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, compute(half.float()))


def test_log_ratio_levels_by_hand():
    policy, anchor = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -1.0, -1.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    assert log_ratio(policy, anchor, mask=mask, level="token").tolist() == [[0.5, -1.0, 0.0]]
    assert log_ratio(policy, anchor, mask=mask).tolist() == [-0.5]
    assert log_ratio(policy, anchor, mask=mask, level="mean").tolist() == [-0.25]


@pytest.mark.parametrize("level", ["token", "sequence", "mean"])
def test_what_stands_off_the_mask_reaches_neither_log_ratio_nor_gradient(level):
    policy, anchor = torch.tensor([[[-1.0, -2.0, torch.nan]], [[-1.5, torch.inf, -1.0]]])
    mask = torch.tensor([[1.0, 0.0, 0.0]])
    policy.requires_grad_()
    ratio = log_ratio(policy, anchor, mask=mask, level=level)
    assert ratio.tolist() == ([[0.5, 0.0, 0.0]] if level == "token" else [0.5])
    (slope,) = torch.autograd.grad(ratio.sum(), policy)
    assert slope.tolist() == [[1.0, 0.0, 0.0]]


def test_anchored_softmax_by_hand():
    moved = anchored_softmax(torch.tensor([[1.0, 0.0]]), temperature=0.5).exp()
    assert moved[0, 0].item() == pytest.approx(1 / (1 + torch.e**-2))
