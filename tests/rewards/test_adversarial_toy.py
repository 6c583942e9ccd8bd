"""D25: a two-dimensional flow model against a discriminator that learns; the answer is where the references are.

The base model draws one of four modes around the origin. References are the same four, shifted.
"""

import pytest
import torch
from toy import MODES, PROMPTS, STD, Run, pretrain, rollout

from imgrl.anchor import Constant, VelocityAnchor
from imgrl.flow import TimeSampler
from imgrl.objectives.image import CRD
from imgrl.rewards.discriminator import Head, accuracy, balanced, side_loss

SHIFT = torch.tensor([0.8, 0.0])


class Judge:
    """Scores points by a head that learns to tell references from them; a round is scored before it is learned from."""

    def __init__(self, references):
        self.references, self.generator = references, torch.Generator().manual_seed(1)
        self.head = Head(2, hidden=64, generator=torch.Generator().manual_seed(2))
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=3e-3)
        self.curve = []

    def __call__(self, points, group):
        with torch.no_grad():
            scores = self.head(points)
        for step in range(8):
            logit = self.head(torch.cat([self.references(len(points), self.generator), points]))
            real = torch.arange(len(logit)) < len(points)
            if step == 0:
                self.curve.append(accuracy(logit.detach(), real).item())
            self.optimizer.zero_grad()
            balanced(side_loss(logit, real, kind="bce"), real).backward()
            self.optimizer.step()
        return scores


def shifted(count, generator):
    mode = torch.randint(PROMPTS, (count,), generator=generator)
    return MODES[mode] + SHIFT + STD * torch.randn(count, 2, generator=generator)


def noise(points, group):
    return torch.randn(len(points), generator=torch.Generator().manual_seed(int(points.sum() * 1e6) % 2**31))


def mean_of(net):
    group = torch.arange(2000) % PROMPTS
    return rollout(net, group, 40, torch.Generator().manual_seed(5)).mean(0)


@pytest.fixture(scope="module")
def pretrained():
    return pretrain()


def objective():
    leash = VelocityAnchor(weight=0.02, guidance=1.0, adaptive="none")
    return CRD(anchor=leash, times=TimeSampler(count=9), old=Constant(value=0.5))


def test_samples_move_to_the_references_until_they_cannot_be_told_apart(pretrained):
    judge = Judge(shifted)
    net = Run(objective(), pretrained, lr=5e-4, updates=150, reward=judge)()
    before, after = mean_of(pretrained), mean_of(net)
    assert (after - before)[0] > 0.6 * SHIFT[0] and abs((after - before)[1]) < 0.2
    assert max(judge.curve[:30]) > 0.7  # it could tell them apart ...
    assert sum(judge.curve[-20:]) / 20 < 0.6  # ... and no longer can


def test_a_reward_of_pure_noise_moves_nothing(pretrained):
    net = Run(objective(), pretrained, lr=5e-4, updates=150, reward=noise)()
    moved = mean_of(net) - mean_of(pretrained)  # a random walk; 0.24 with this seed
    assert moved.norm() < 0.5 * SHIFT.norm()
