"""Drift of a policy whose velocity is known: a scaled last layer scales the velocity."""

import pytest
import torch

from imgrl.evaluation.drift import velocity_norm_ratios
from imgrl.policies import load_policy
from imgrl.types import Conditioning


def points(policy, n=5):
    return policy.initial_noise(range(n)), policy.encode([f"shape {i}" for i in range(n)])


def test_it_is_one_before_training(policy):
    latents, cond = points(policy)
    assert velocity_norm_ratios(policy, latents, cond, policy.sigmas(4), seed=0).tolist() == [1.0] * 5


def test_a_doubled_last_layer_doubles_it(folder):
    """The velocity is linear in the output layer, weight and bias alike."""
    policy = load_policy(folder, train="full", max_sequence_length=0)
    policy.weights.add("frozen")
    latents, cond = points(policy)
    with torch.no_grad():
        for parameter in policy.transformer.proj_out.parameters():
            parameter *= 2
    options = {"sigmas": torch.tensor([0.3, 0.9]), "seed": 0}
    for batch in (64, 2):
        found = velocity_norm_ratios(policy, latents, cond, **options, batch=batch)
        assert found.tolist() == pytest.approx([2.0] * 5, rel=1e-5)


def test_points_may_be_shared_out_and_other_weights_asked_about(policy):
    latents, cond = points(policy)
    policy.weights.add("ema")
    with torch.no_grad():
        for parameter in policy.weights.parameters():
            parameter += 0.3
    given: dict = {"sigmas": torch.tensor([0.7, 0.2, 0.5]), "seed": 3}
    whole, shared = velocity_norm_ratios(policy, latents, cond, **given), torch.zeros(5, dtype=torch.float64)
    for rows in (torch.tensor([0, 2, 4]), torch.tensor([1, 3])):
        part = Conditioning(tensors={name: tensor[rows] for name, tensor in cond.tensors.items()})
        shared[rows] = velocity_norm_ratios(policy, latents[rows], part, **given, points=rows, total=5)
    torch.testing.assert_close(shared, whole, rtol=1e-5, atol=0)
    assert velocity_norm_ratios(policy, latents, cond, **given, weights="ema").tolist() == [1.0] * 5


def test_levels_of_zero_are_left_out_and_nothing_is_refused(policy):
    latents, cond = points(policy)
    with torch.no_grad():
        for parameter in policy.weights.parameters():
            parameter += 0.3
    with_zero = velocity_norm_ratios(policy, latents, cond, torch.tensor([0.7, 0.0, 0.2]), seed=3)
    without = velocity_norm_ratios(policy, latents, cond, torch.tensor([0.7, 0.2]), seed=3)
    assert torch.equal(with_zero, without) and (with_zero != 1).all()
    with pytest.raises(ValueError, match="a level above 0"):
        velocity_norm_ratios(policy, latents, cond, torch.zeros(2), seed=0)
    with pytest.raises(ValueError, match="0 latents"):
        velocity_norm_ratios(policy, latents[:0], cond, torch.ones(1), seed=0)
