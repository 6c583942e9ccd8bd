"""What each anchor costs and gains: distillation of a noisy teacher, and learning online from noisy rewards.

Part of ``adpo.py``, which runs it; the networks and the random rewards are those of its bandits, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from imgrl.anchor import blend, categorical_kl
from imgrl.objectives.text import Target, adpo_loss
from imgrl.objectives.text.adpo_targets import boltzmann, zscore

DIM, TRAIN, TEST, BATCH, RATE = 8, 256, 512, 32, 5e-3
ANCHORS = ("none", "teacher", "self", "ema", "dynamic")
TEMPERATURES = (0.25, 1.0, 4.0, 16.0)
OUTCOMES = 16
DECAY, RENEW = 0.98, 20


class Policies:
    """Many one-hidden-layer networks at once: ``[*models, contexts, DIM] -> [*models, contexts, arms]``."""

    def __init__(self, models: tuple[int, ...], hidden: int, arms: int, generator: torch.Generator) -> None:
        def draw(*shape: int) -> Tensor:  # every model of a seed starts from the same weights
            start = torch.randn(*shape, generator=generator) / shape[0] ** 0.5
            return start.expand(*models, *shape).clone().requires_grad_()

        self.weights = [draw(DIM, hidden), draw(1, hidden), draw(hidden, arms), draw(1, arms)]
        with torch.no_grad():
            for index, scale in ((1, 0.0), (2, 0.1), (3, 0.0)):
                self.weights[index].mul_(scale)
        self.restart()

    def restart(self) -> None:
        """A fresh optimiser."""
        self.optimiser = torch.optim.AdamW(self.weights, lr=RATE, weight_decay=0.01)

    def __call__(self, x: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """Logits by context."""
        a, b, c, d = weights or self.weights
        return torch.tanh(x @ a + b) @ c + d

    def copy(self) -> list[Tensor]:
        """The weights as they are."""
        return [w.detach().clone() for w in self.weights]

    def step(self, loss: Tensor) -> None:
        """One optimiser step; ``loss`` is the sum over models, so that each gets its own gradient."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()


def world(generator: torch.Generator, arms: int) -> Callable[[Tensor], Tensor]:
    """A random reward by context and arm, standardised over arms."""
    first, second = torch.randn(DIM, 32, generator=generator), torch.randn(32, arms, generator=generator)
    return lambda x: zscore((torch.tanh(x @ first / DIM**0.5) @ second).view(-1, arms)).view(
        *x.shape[:-1], arms
    )


class Student:
    """One policy for each anchor and temperature, and the copies they are anchored to."""

    def __init__(self, anchors: tuple[str, ...], seed: int, truth: Callable[[Tensor], Tensor]) -> None:
        self.generator = torch.Generator().manual_seed(seed + 20_000)
        self.pairs = [(a, t) for a in anchors for t in TEMPERATURES]
        self.net = Policies((len(self.pairs),), 64, OUTCOMES, self.generator)
        for _ in range(30):  # pre-trained on clean data, as in the bandits
            x = torch.randn(BATCH, DIM, generator=self.generator)
            q = boltzmann(truth(x), temperature=0.5).expand(len(self.pairs), -1, -1).reshape(-1, OUTCOMES)
            self.net.step(adpo_loss(self.net(x).view(-1, OUTCOMES), None, q, temperature=1.0).sum() / BATCH)
        self.net.restart()
        self.first, self.ema, self.recent = self.net.copy(), self.net.copy(), self.net.copy()

    @torch.no_grad()
    def anchors(self, x: Tensor, teacher: Tensor) -> Tensor:
        """Log-probabilities of each policy's own anchor; 0 where it is uniform."""
        copies = {
            "self": self.net(x, self.first),
            "ema": self.net(x, self.ema),
            "dynamic": self.net(x, self.recent),
            "teacher": teacher.expand(len(self.pairs), -1, -1),
            "none": torch.zeros(len(self.pairs), *teacher.shape),
        }
        return torch.stack([copies[a][i] for i, (a, _) in enumerate(self.pairs)]).log_softmax(-1)

    def learn(self, logits: Tensor, anchor: Tensor, q: Tensor, step: int) -> None:
        """A step of ADPO on lists ``[policies, BATCH, k]``, after which the copies follow."""
        k = logits.shape[-1]
        tau = torch.tensor([t for _, t in self.pairs]).repeat_interleave(BATCH)
        loss = adpo_loss(logits.reshape(-1, k), anchor.reshape(-1, k), q.reshape(-1, k), temperature=tau)
        self.net.step(loss.sum() / BATCH)
        blend(self.ema, self.net.weights, DECAY)
        if (step + 1) % RENEW == 0:
            self.recent = self.net.copy()


def distil(seed: int, *, steps: int = 300) -> dict[str, list[float]]:
    """Return, and KL to the noiseless teacher, of students that learn its labels on fixed contexts, drawn once."""
    generator = torch.Generator().manual_seed(seed + 30_000)
    truth, error = world(generator, OUTCOMES), world(generator, OUTCOMES)
    student = Student(ANCHORS, seed, truth)
    x = torch.randn(TRAIN, DIM, generator=generator)
    labels = teacher_logits(x, truth, error) + torch.randn(TRAIN, OUTCOMES, generator=generator)
    for step in range(steps):
        rows = torch.randint(TRAIN, (BATCH,), generator=generator)
        logits = student.net(x[rows])
        q = labels[rows].softmax(-1).expand(len(student.pairs), -1, -1)
        student.learn(logits, student.anchors(x[rows], labels[rows]), q, step)
    test = torch.randn(TEST, DIM, generator=generator)
    base = teacher_logits(test, truth, error).log_softmax(-1)
    found = {
        f"{a}|{t}": measure(student.net, i, test, truth(test), base) for i, (a, t) in enumerate(student.pairs)
    }
    teacher = round((base.exp() * truth(test)).sum(-1).mean().item(), 4)
    start = measure(student.net, 0, test, truth(test), base, student.first)
    return {**found, "teacher": [teacher, 0.0, 0.0], "start": start}


def teacher_logits(x: Tensor, truth: Callable[[Tensor], Tensor], error: Callable[[Tensor], Tensor]) -> Tensor:
    """A teacher that knows the rewards up to an error of its own."""
    return 2 * truth(x) + error(x)


@torch.no_grad()
def measure(
    net: Policies, i: int, x: Tensor, reward: Tensor, base: Tensor, weights: list[Tensor] | None = None
) -> list[float]:
    """Expected clean reward of a policy, then KL(policy || base) and KL(base || policy), nats."""
    log_p = net(x, weights)[i].log_softmax(-1)
    value = (log_p.exp() * reward).sum(-1).mean()
    kls = [categorical_kl(log_p, base, direction=d).mean() for d in ("reverse", "forward")]
    return [round(x.item(), 4) for x in (value, *kls)]


def online(seed: int, *, steps: int = 300, samples: int = 8) -> dict[str, list[float]]:
    """Return, and KL to the start, of policies that learn from noisy rewards of their own samples on fresh contexts."""
    generator = torch.Generator().manual_seed(seed + 40_000)
    truth = world(generator, OUTCOMES)
    student = Student(("none", "self", "ema", "dynamic"), seed, truth)
    policies = len(student.pairs)
    for step in range(steps):
        x = torch.randn(BATCH, DIM, generator=generator)
        logits = student.net(x).log_softmax(-1)
        flat = logits.detach().exp().view(-1, OUTCOMES)
        arms = torch.multinomial(flat, samples, replacement=True, generator=generator).view(
            policies, BATCH, -1
        )
        noise = torch.randn(arms.shape, generator=generator)
        wild = torch.rand(arms.shape, generator=generator) < 0.1
        reward = truth(x).expand_as(logits).gather(-1, arms) + torch.where(wild, 10 * noise, noise)
        q = Target.online(reward.view(-1, samples)).q
        anchor = student.anchors(x, torch.zeros(BATCH, OUTCOMES)).gather(-1, arms)
        student.learn(logits.gather(-1, arms), anchor, q, step)
    test = torch.randn(TEST, DIM, generator=generator)
    base = [student.net(test, student.first)[i].log_softmax(-1).detach() for i in range(policies)]
    found = {
        f"{a}|{t}": measure(student.net, i, test, truth(test), base[i])
        for i, (a, t) in enumerate(student.pairs)
    }
    return {**found, "start": measure(student.net, 0, test, truth(test), base[0], student.first)}
