"""A learning problem with a known answer: four prompts, four Gaussian modes on a circle, one right mode a prompt.

Whether the reward is learnt is easy; what separates objectives is whether the samples stay on the data:
``distance`` is the mean distance to the nearest mode in its standard deviations (data 1.25, larger is reward
hacking) and ``spread`` the standard deviation inside modes relative to the data (smaller is collapse).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from imgrl.anchor import blend
from imgrl.flow import (
    Path,
    add_noise,
    guided,
    mean_dims,
    sample_ode,
    sample_path,
    sigma_schedule,
    velocity_target,
)
from imgrl.objectives.image import Batch
from imgrl.training.groups import group_advantages
from imgrl.types import Noised, Transition

PROMPTS, NONE = 4, 4  # the fifth condition is the empty prompt
ANGLES = torch.arange(PROMPTS) * math.pi / 2
MODES = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
STD = 0.25
SIGMAS = sigma_schedule(10, kind="explicit")


class Flow(nn.Module):
    """Velocity of a 2-D point: three layers of 128."""

    def __init__(self):
        super().__init__()
        sizes = [2 + 9 + PROMPTS + 1, 128, 128, 128]
        layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.SiLU())]
        self.net = nn.Sequential(*layers, nn.Linear(128, 2))

    def forward(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        sigma = sigma.expand(len(x))[:, None]
        waves = sigma * torch.arange(1, 5) * math.pi
        one_hot = nn.functional.one_hot(prompt, PROMPTS + 1).to(x)
        return self.net(torch.cat([x, sigma, waves.sin(), waves.cos(), one_hot], 1))


def copy_of(net: Flow) -> Flow:
    other = Flow()
    other.load_state_dict(net.state_dict())
    return other.requires_grad_(False)


WEIGHTS = torch.cat([torch.full((PROMPTS, PROMPTS), 0.2).fill_diagonal_(0.4), torch.full((1, PROMPTS), 0.25)])


def exact_velocity(x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
    """Marginal velocity of the mixture: a prompt's own mode weighs .4, each other one .2; all alike without prompt."""
    sigma, keep = sigma[:, None], 1 - sigma[:, None]
    variance = keep**2 * STD**2 + sigma**2
    offset = x[:, None] - keep[..., None] * MODES
    share = (WEIGHTS[prompt].log() - offset.square().sum(-1) / (2 * variance)).softmax(-1)
    per_mode = -MODES + ((sigma - keep * STD**2) / variance)[..., None] * offset
    return (share[..., None] * per_mode).sum(1)


def pretrain(*, steps: int = 1500, seed: int = 0) -> Flow:
    """Regress the exact velocity, which is what flow matching converges to."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = Flow()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        prompt = torch.randint(PROMPTS + 1, (512,), generator=generator)
        mode = torch.multinomial(WEIGHTS[prompt], 1, generator=generator)[:, 0]
        clean = MODES[mode] + STD * torch.randn(512, 2, generator=generator)
        sigma = torch.rand(512, generator=generator)
        x = add_noise(clean, torch.randn(512, 2, generator=generator), sigma)
        optimizer.zero_grad()
        mean_dims((net(x, sigma, prompt) - exact_velocity(x, sigma, prompt)) ** 2).mean().backward()
        optimizer.step()
        decay.step()
    return net


def rollout(net: Flow, prompt: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    start = torch.randn(len(prompt), 2, generator=generator)
    return sample_ode(lambda x, sigma: net(x, sigma, prompt), start, sigma_schedule(steps, kind="explicit"))


def reward_of(x: Tensor, prompt: Tensor) -> Tensor:
    """1 if the nearest mode is the prompt's, else 0."""
    return (torch.cdist(x, MODES).argmin(1) == prompt).float()


@dataclass
class Result:
    reward: float
    distance: float
    spread: float


@torch.no_grad()
def evaluate(net: Flow, *, steps: int = 40) -> Result:
    """1024 samples; the weights as trained, without guidance."""
    prompt = torch.arange(1024) % PROMPTS
    x = rollout(net, prompt, steps, torch.Generator().manual_seed(9))
    apart, mode = torch.cdist(x, MODES).min(1)
    inside = [
        (x[mode == m] - x[mode == m].mean(0)).square().mean() for m in range(PROMPTS) if (mode == m).sum() > 8
    ]
    spread = torch.stack(inside).mean().sqrt().item() / STD
    return Result(reward_of(x, prompt).mean().item(), apart.mean().item() / STD, spread)


@dataclass
class Run:
    """One update a round on 4 x 24 samples, as the image loop does it."""

    objective: object
    pretrained: Flow
    lr: float = 3e-4
    updates: int = 100
    seed: int = 0
    size: int = 24
    reward: Callable[[Tensor, Tensor], Tensor] = reward_of
    curve: list[float] = field(default_factory=list)

    def __call__(self) -> Flow:
        objective, generator = self.objective, torch.Generator().manual_seed(self.seed)
        net = copy_of(self.pretrained).requires_grad_(True)
        old, sampler = copy_of(net), copy_of(net)
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=1e-4)
        group = torch.arange(PROMPTS).repeat_interleave(self.size)
        for step in range(1, self.updates + 1):
            source = old if objective.sampling is None else sampler
            path = self.sample(source, group, generator)
            raw = self.reward(path.clean, group)
            self.curve.append(raw.mean().item())
            earned = {"advantage": group_advantages(raw, group).advantage.float(), "raw": raw, "group": group}
            optimizer.zero_grad()
            points = self.points(path, group, generator)
            for point in points:
                (objective.loss(self.batch(net, old, point, **earned)).loss.mean() / len(points)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            blend(list(old.parameters()), list(net.parameters()), objective.old(step))
            if objective.sampling is not None:
                blend(list(sampler.parameters()), list(net.parameters()), objective.sampling(step))
        return net

    def sample(self, source: Flow, group: Tensor, generator: torch.Generator) -> Path:
        """A rollout; without random steps where the objective asks for none."""
        sampler = self.objective.sampler
        if sampler is None:
            clean = rollout(source, group, 10, generator)
            return Path(clean, clean[None], clean[:0, 0], None, SIGMAS, 0)
        draws = torch.randn(1 + sampler.count(10), len(group), 2, generator=generator)
        return sample_path(
            lambda x, sigma: source(x, sigma, group),
            draws[0],
            SIGMAS,
            sampler,
            start=sampler.start(10, generator),
            noises=draws[1:],
            keep_mean=True,
        )

    def points(self, path: Path, group: Tensor, generator: torch.Generator) -> list[Noised | Transition]:
        """What an update trains on."""
        if self.objective.sampler is not None:
            return [
                Transition(
                    state=path.states[k],
                    after=path.states[k + 1],
                    log_prob=path.log_prob[k],
                    mean=path.mean[k],
                    sigmas=SIGMAS,
                    index=path.start + k,
                )
                for k in range(len(path.log_prob))
            ]
        return [self.noised(path.clean, s, generator) for s in self.objective.times.draw(SIGMAS, generator)]

    def noised(self, clean: Tensor, sigma: Tensor, generator: torch.Generator) -> Noised:
        noise, sigma = torch.randn(clean.shape, generator=generator), sigma.expand(len(clean))
        if self.objective.shares_noise:
            noise = noise[:: self.size].repeat_interleave(self.size, 0)
        noisy = add_noise(clean, noise, sigma)
        return Noised(
            clean=clean, noise=noise, sigma=sigma, noisy=noisy, target=velocity_target(clean, noise)
        )

    def batch(self, net: Flow, old: Flow, point: Noised | Transition, *, group: Tensor, **earned) -> Batch:
        if isinstance(point, Noised):
            x, sigma, kind = point.noisy, point.sigma, {"noised": point}
        else:
            x, sigma, kind = point.state, point.sigmas[point.index], {"transition": point}
        anchor = None
        with torch.no_grad():
            if self.objective.anchor.active:
                cond = self.pretrained(x, sigma, group)
                uncond = self.pretrained(x, sigma, torch.full_like(group, NONE))
                anchor = guided(cond, uncond, scale=self.objective.anchor.guidance)
            behind = old(x, sigma, group)
        return Batch(current=net(x, sigma, group), old=behind, anchor=anchor, group=group, **kind, **earned)
