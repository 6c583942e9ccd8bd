import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imgrl.anchor import VelocityAnchor, center
from imgrl.flow import mean_dims
from imgrl.objectives.image import DGPO, Batch
from imgrl.objectives.image.dgpo import dgpo_loss
from imgrl.types import Noised


def problem(seed=0, groups=3, size=4):
    generator = torch.Generator().manual_seed(seed)
    n = groups * size
    v, v_ref, target = torch.randn(3, n, 2, 3, generator=generator, dtype=torch.float64)
    group = torch.arange(groups).repeat_interleave(size)
    advantage = center(torch.randn(n, generator=generator, dtype=torch.float64), group)
    return v, v_ref, target, advantage, group


@given(seed=st.integers(0, 999), beta=st.floats(0.1, 50))
def test_gradient_is_that_of_the_group_likelihood(seed, beta):
    # -log sigmoid(R+ - R-) with R+- the |A|-weighted sums of beta (e_ref - e) over the better and worse images of a
    # group; per image, so over the group's size. Its gradient, by autograd, over beta, is the loss's.
    v, v_ref, target, advantage, group = problem(seed)
    v.requires_grad_()
    loss, _ = dgpo_loss(v, v_ref, target, advantage, group, beta=beta)
    (gradient,) = torch.autograd.grad(loss.mean(), v)
    gain = beta * (mean_dims((v_ref - target) ** 2) - mean_dims((v - target) ** 2))
    terms = []
    for number in range(3):
        mine = group == number
        good, bad = mine & (advantage > 0), mine & (advantage <= 0)
        better = (advantage[good].abs() * gain[good]).sum() / mine.sum()
        worse = (advantage[bad].abs() * gain[bad]).sum() / mine.sum()
        terms.append(-torch.nn.functional.logsigmoid(better - worse))
    (expected,) = torch.autograd.grad(torch.stack(terms).mean() / beta, v)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14)


def test_at_the_reference_it_is_half_of_advantage_weighted_matching():
    _, v_ref, target, advantage, group = problem()
    v = v_ref.clone().requires_grad_()
    loss, weight = dgpo_loss(v, v_ref, target, advantage, group)
    torch.testing.assert_close(weight, torch.full_like(weight, 0.5))
    (gradient,) = torch.autograd.grad(loss.sum(), v)
    (expected,) = torch.autograd.grad((advantage / 2 * mean_dims((v - target) ** 2)).sum(), v)
    torch.testing.assert_close(gradient, expected)


def test_a_constant_of_the_group_leaves_the_weights_alone():
    # The partition function: an equal change of every error of a group cancels, because advantages sum to 0.
    _, v_ref, target, advantage, group = problem()
    moved = target + (v_ref - target) * 2  # every error times 4 ...
    even = target + (v_ref - target) / mean_dims((v_ref - target) ** 2).sqrt().view(
        -1, 1, 1
    )  # ... and all errors 1
    _, weight = dgpo_loss(2 * even - target, even, target, advantage, group, beta=10.0)
    torch.testing.assert_close(weight, torch.full_like(weight, 0.5))
    _, weight = dgpo_loss(moved, v_ref, target, advantage, group, beta=10.0)
    assert (weight - 0.5).abs().max() > 0.01  # unequal changes do not


def test_samples_that_went_far_enough_get_no_gradient():
    v, v_ref, target, advantage, group = problem()
    v.requires_grad_()
    free, _ = dgpo_loss(v, v_ref, target, advantage, group, beta=0.1)
    held, _ = dgpo_loss(v, v_ref, target, advantage, group, beta=0.1, ratio_clip=0.1)
    torch.testing.assert_close(free, held)
    (gradient,) = torch.autograd.grad(held.sum(), v)
    ratio = (mean_dims((v_ref - target) ** 2) - mean_dims((v - target) ** 2)).exp()
    gone = ((advantage > 0) & (ratio > 1.1)) | ((advantage <= 0) & (ratio < 0.9))
    assert gone.any() and not gone.all()
    torch.testing.assert_close(mean_dims(gradient.abs()) == 0, gone)


def test_as_an_objective_and_wrong_settings():
    v, v_ref, target, advantage, group = problem()
    sigma = torch.full_like(advantage, 0.7)
    noised = Noised(clean=target, noise=target, sigma=sigma, noisy=target, target=target)
    batch = Batch(
        current=v, old=v_ref, anchor=v_ref, noised=noised, advantage=advantage, raw=advantage, group=group
    )
    out = DGPO(anchor=VelocityAnchor(weight=0.5, adaptive="none")).loss(batch)
    policy, _ = dgpo_loss(v, v_ref, target, advantage, group, ratio_clip=0.01)
    torch.testing.assert_close(out.loss, policy + 0.5 * mean_dims((v - v_ref) ** 2))
    assert DGPO.shares_noise
    for bad in ({"beta": 0.0}, {"advantage_clip": 0.0}, {"ratio_clip": 0.0}):
        with pytest.raises(ValueError, match="Expected DGPO"):
            DGPO(**bad)
