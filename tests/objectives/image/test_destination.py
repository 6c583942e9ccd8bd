"""Where online training ends: the anchor sets the destination, the trust region only the speed.

The copies equal the policy, samples are its own; the rest point is where the expected gradient vanishes.
Expectations over samples, levels and noises are Gauss quadratures, so the answers are exact up to the stated
tolerance.
"""

import pytest
import torch
from gaussian import F64, Points, hermite, legendre, velocity
from scipy.optimize import brentq

from imgrl.anchor import VelocityAnchor
from imgrl.flow import guided
from imgrl.objectives.image import CRD, Batch
from imgrl.types import Noised

NODES, WEIGHTS = hermite(14)
UNCOND, COND, SCALE = -0.4, 0.2, 4.5
GUIDED_MEAN = 2.3  # -.4 + 4.5 (.2 + .4)


def push(mean, *, std, reward, anchor, beta=1.0, anchor_velocity=None):
    """Expected gradient with respect to the policy's mean when every copy equals the policy N(mean, std^2)."""
    clean = mean + std * NODES
    points = Points(clean, legendre(12), hermite(10))
    score = reward(clean)
    mu = (WEIGHTS * score).sum()
    spread = (WEIGHTS * (score - mu) ** 2).sum().sqrt().clamp(min=1e-6)
    moving = torch.tensor(mean, dtype=F64, requires_grad=True)
    parts = (points.clean, points.noise, points.sigma, points.noisy, points.target)
    batch = Batch(
        current=points.velocity(moving, std),
        old=points.velocity(mean, std),
        anchor=points.velocity(0.0, std) if anchor_velocity is None else anchor_velocity(points),
        noised=Noised(**dict(zip(("clean", "noise", "sigma", "noisy", "target"), parts, strict=True))),
        advantage=((score - mu) / spread)[points.sample],
        raw=score[points.sample],
        group=torch.zeros(len(points.sample), dtype=torch.int64),
    )
    # advantages reach 7 standard deviations at the outermost node, whose weight is 1e-11
    loss = CRD(beta=beta, adaptive=False, advantage_clip=10.0, anchor=anchor).loss(batch).loss
    (gradient,) = torch.autograd.grad((WEIGHTS[points.sample] * points.weight * loss).sum(), moving)
    return gradient.item()


def destination(**setting):
    """Mean at which training rests, found between two brackets."""
    return brentq(lambda mean: push(mean, **setting), -3.0, 9.0, xtol=1e-6)


def linear(x):
    return x


def none(x):
    return torch.zeros_like(x)


def fixed(weight):
    return VelocityAnchor(weight=weight, adaptive="none")


def guided_anchor(points):
    return guided(points.velocity(COND, 1.0), points.velocity(UNCOND, 1.0), scale=SCALE)


def test_guided_velocity_is_the_velocity_of_the_extrapolated_gaussian():
    # E13, and E14 at scale 1
    x, t = torch.linspace(-3, 3, 25, dtype=F64)[:, None], 0.37
    for scale, std in ((SCALE, 1.0), (1.0, 0.6), (2.0, 1.7)):
        both = guided(velocity(x, t, COND, std), velocity(x, t, UNCOND, std), scale=scale)
        expected = velocity(x, t, UNCOND + scale * (COND - UNCOND), std)
        torch.testing.assert_close(both, expected, rtol=0, atol=1e-14)


def test_without_reward_the_guided_model_is_distilled():
    # E15
    found = destination(std=1.0, reward=none, anchor=fixed(1.0), anchor_velocity=guided_anchor)
    assert found == pytest.approx(GUIDED_MEAN, abs=1e-4)


def test_reward_adds_to_the_guided_model():
    # E16: 2.3 + s / weight
    found = destination(std=1.0, reward=linear, anchor=fixed(1.0), anchor_velocity=guided_anchor)
    assert found == pytest.approx(GUIDED_MEAN + 1, abs=0.005)


@pytest.mark.parametrize(("weight", "std"), [(1.0, 1.0), (0.5, 1.0), (0.5, 0.5), (2.0, 1.5)])
@pytest.mark.parametrize("beta", [0.1, 10.0])
def test_equilibrium_is_std_over_weight_whatever_beta_and_reward_scale(weight, std, beta):
    # E17
    found = destination(std=std, reward=lambda x: 30 * x, anchor=fixed(weight), beta=beta)
    assert found == pytest.approx(std / weight, rel=0.005)


def test_an_advantage_driven_leash_is_half_as_strong():
    # E17: the mean strength is one half for ever, so the destination doubles (up to its correlation with the gap)
    anchor = VelocityAnchor(weight=1.0, floor=0.0, adaptive="advantage")
    assert destination(std=1.0, reward=linear, anchor=anchor) == pytest.approx(2.0, rel=0.01)


def test_a_raw_reward_leash_reaches_farther_while_reward_is_low():
    # E19: reward sigmoid(x - 2): a constant leash stops near .97, the raw one at 1.986 where rewards are still middling
    def reward(x):
        return torch.sigmoid(x - 2)

    stiff = destination(std=1.0, reward=reward, anchor=fixed(1.0))
    loose = destination(std=1.0, reward=reward, anchor=VelocityAnchor(weight=1.0, adaptive="raw"))
    assert stiff == pytest.approx(0.97, abs=0.02)
    assert loose == pytest.approx(1.986, abs=0.1)


def test_a_hard_copy_never_engages_the_trust_region():
    # With the old copy equal to the policy, beta has no effect on the push at all.
    pushes = [push(0.3, std=1.0, reward=linear, anchor=fixed(0.0), beta=beta) for beta in (0.1, 1.0, 10.0)]
    assert pushes == pytest.approx([pushes[0]] * 3, rel=1e-9) and pushes[0] < 0  # downhill is to the right
