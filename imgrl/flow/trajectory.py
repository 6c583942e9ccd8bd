"""Which steps of a rollout are random, and how: the action space of policy gradients on flow models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.flow.solvers import euler_step
from imgrl.flow.stochastic import Density, StochasticStep, cps_step, dance_step, sde_step

__all__ = ["Path", "StochasticSampler", "joined", "sample_path"]

_NOISE_LEVELS = {"sde": 0.7, "dance": 0.3, "cps": 0.8}


@dataclass(frozen=True, kw_only=True)
class StochasticSampler:
    """Random steps inside a window of the schedule, Euler's outside.

    Example:
        ``StochasticSampler(kind="cps", window=2)`` is Flow-GRPO-Fast's and Adv-GRPO's way to sample.
    """

    kind: Literal["sde", "dance", "cps"] = "sde"
    """Flow-GRPO's reverse SDE, DanceGRPO's, or the coefficient-preserving step."""
    noise_level: float | None = None
    """How random; None takes 0.7 (sde), 0.3 (dance) or 0.8 (cps)."""
    density: Density | None = None
    """``gaussian``, or ``unnormalised``: without the variance, which damps steps of low noise. None takes
    ``unnormalised`` for cps, as Adv-GRPO trains it, and ``gaussian`` otherwise."""
    window: int | None = None
    """Consecutive random steps a rollout; None makes all but the last random."""
    placing: Literal["random", "first"] = "random"
    """Where the window lies: drawn anew every round, or at the start."""
    reach: float = 0.5
    """Windows lie within this share of the steps, from the noisy end on."""

    def __post_init__(self) -> None:
        """Refuse settings without a density."""
        if self.kind not in _NOISE_LEVELS:
            raise ValueError(f"Unknown stochastic step {self.kind!r}; choose 'sde', 'dance' or 'cps'.")
        if self.density not in (None, "gaussian", "unnormalised"):
            raise ValueError(f"Unknown density {self.density!r}; choose 'gaussian' or 'unnormalised'.")
        if not self.level > 0:
            raise ValueError(
                f"Expected noise_level > 0, got {self.level}: a deterministic step has no density to train."
            )
        if self.kind == "cps" and self.level > 1:
            raise ValueError(f"Expected noise_level in (0, 1] for cps, got {self.level}.")
        if self.window is not None and self.window < 1:
            raise ValueError(f"Expected a window of at least 1 step, got {self.window}; none takes all.")
        if self.placing not in ("random", "first"):
            raise ValueError(f"Unknown placing {self.placing!r}; choose 'random' or 'first'.")
        if not 0 < self.reach <= 1:
            raise ValueError(f"Expected reach in (0, 1], got {self.reach}.")

    @property
    def log_density(self) -> Density:
        """The density in force."""
        return self.density or ("unnormalised" if self.kind == "cps" else "gaussian")

    @property
    def level(self) -> float:
        """The noise level in force."""
        return _NOISE_LEVELS[self.kind] if self.noise_level is None else self.noise_level

    def count(self, steps: int) -> int:
        """Random steps in a rollout of ``steps``.

        Raises:
            ValueError: the window does not fit; the last step, which has no density, can never be in it.
        """
        if steps < 2:
            raise ValueError(
                f"Expected at least 2 rollout steps, of which the last is not random, got {steps}."
            )
        if self.window is None:
            return steps - 1
        last = self._last(steps)
        if self.window > last:
            raise ValueError(
                f"A window of {self.window} random steps does not fit into the first {last} of {steps} steps "
                f"(reach {self.reach}, the last step is never random); use a shorter window, a wider reach or "
                "more rollout steps."
            )
        return self.window

    def start(self, steps: int, generator: torch.Generator | None = None) -> int:
        """First random step of a rollout; everyone who samples one group must draw from equal generators."""
        room = 0 if self.window is None else self._last(steps) - self.count(steps)
        if self.placing == "first" or not room:
            return 0
        return int(torch.randint(room + 1, (), generator=generator))

    def _last(self, steps: int) -> int:
        return min(round(self.reach * steps), steps - 1)

    def step(
        self,
        x: Float[Tensor, " n *d"],
        v: Float[Tensor, " n *d"],
        *,
        sigmas: Float[Tensor, " levels"],
        index: int,
        noise: Float[Tensor, " n *d"] | None = None,
        sample: Float[Tensor, " n *d"] | None = None,
    ) -> StochasticStep:
        """Step ``index`` of the schedule: draw a sample with ``noise``, or score a given ``sample``."""
        sigma, sigma_next = float(sigmas[index]), float(sigmas[index + 1])
        density = self.log_density
        if self.kind == "sde":
            return sde_step(
                x,
                v,
                sigma=sigma,
                sigma_next=sigma_next,
                sigma_second=float(sigmas[1]),
                noise_level=self.level,
                noise=noise,
                sample=sample,
                density=density,
            )
        return (dance_step if self.kind == "dance" else cps_step)(
            x,
            v,
            sigma=sigma,
            sigma_next=sigma_next,
            noise_level=self.level,
            noise=noise,
            sample=sample,
            density=density,
        )


class Path(NamedTuple):
    """What a rollout with random steps leaves behind; ``w`` random steps, the first at ``sigmas[start]``."""

    clean: Tensor
    """[n, *d]: the end."""
    states: Tensor
    """[w + 1, n, *d], float32: before each random step, and after the last."""
    log_prob: Tensor
    """[w, n]: mean log-density of each step, from the stored states."""
    mean: Tensor | None
    """[w, n, *d]: mean of each step, where asked for."""
    sigmas: Tensor
    """[levels]: the schedule."""
    start: int
    """Index of the first random step."""


@torch.no_grad()
def sample_path(
    velocity_fn: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, " n *d"],
    sigmas: Float[Tensor, " levels"],
    sampler: StochasticSampler,
    *,
    start: int,
    noises: Sequence[Tensor] | Tensor,
    keep_mean: bool = False,
) -> Path:
    """Sample with ``len(noises)`` random steps from step ``start`` on, by Euler's rule elsewhere.

    ``velocity_fn(x, sigma)`` receives the level as a scalar tensor; ``noises`` are standard normal ``[n, *d]``.
    """
    if start < 0 or not len(noises) or start + len(noises) > len(sigmas) - 2:
        raise ValueError(
            f"Expected random steps between 0 and {len(sigmas) - 3} (the last step has no density), got "
            f"{len(noises)} from {start} on."
        )
    states: list[Tensor] = []
    log_probs: list[Tensor] = []
    means: list[Tensor] = []
    for i in range(len(sigmas) - 1):
        v = velocity_fn(x, sigmas[i])
        if not start <= i < start + len(noises):
            x = euler_step(x, v, sigma=float(sigmas[i]), sigma_next=float(sigmas[i + 1]))
            continue
        states.append(x)
        step = sampler.step(x, v, sigmas=sigmas, index=i, noise=noises[i - start])
        log_probs.append(step.log_prob)
        means += [step.mean] if keep_mean else []
        x = step.sample
        if i == start + len(noises) - 1:
            states.append(x)
    return Path(
        clean=x,
        states=torch.stack(states),
        log_prob=torch.stack(log_probs),
        mean=torch.stack(means) if keep_mean else None,
        sigmas=sigmas,
        start=start,
    )


def joined(paths: Sequence[Path]) -> Path:
    """Paths of several batches of one rollout as one."""
    first = paths[0]
    means = [path.mean for path in paths if path.mean is not None]
    return first._replace(
        clean=torch.cat([path.clean for path in paths]),
        states=torch.cat([path.states for path in paths], 1),
        log_prob=torch.cat([path.log_prob for path in paths], 1),
        mean=torch.cat(means, 1) if means else None,
    )
