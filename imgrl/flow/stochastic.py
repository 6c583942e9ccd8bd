"""Stochastic sampling steps with the log-density that policy gradients need.

``sde_step`` is Flow-GRPO's reverse SDE (Liu et al. 2025, arXiv 2505.05470); ``cps_step`` keeps the
coefficients of signal and noise (arXiv 2509.05952). Both return means over the latent's numbers, not sums, so
a likelihood ratio is the geometric mean over dimensions; clip ranges are small for that reason.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.flow.conventions import (
    full_precision,
    mean_dims,
    per_sample,
    predict_clean,
    predict_noise,
    require_same_shape,
)

__all__ = ["Density", "StochasticStep", "cps_step", "dance_step", "sde_step"]

Density = Literal["gaussian", "unnormalised"]


class StochasticStep(NamedTuple):
    """One transition: ``sample ~ Normal(mean, std)`` and the mean log-density of that sample."""

    sample: Tensor
    """[n, *d]; carries no gradient."""
    mean: Tensor
    """[n, *d]"""
    std: Tensor
    """[n]; 0 makes the step deterministic."""
    log_prob: Tensor
    """[n]; NaN where a Gaussian density of standard deviation 0 was asked for."""


def sde_step(
    x: Float[Tensor, " n *d"],
    v: Float[Tensor, " n *d"],
    *,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    sigma_second: Tensor | float,
    noise_level: float = 0.7,
    noise: Float[Tensor, " n *d"] | None = None,
    sample: Float[Tensor, " n *d"] | None = None,
    density: Density = "gaussian",
) -> StochasticStep:
    """Flow-GRPO's variance-adding step: ``noise`` draws a new sample, ``sample`` scores a given one.

    The diffusion is ``noise_level sqrt(sigma / (1 - sigma))``. At sigma 1 it is infinite, and
    ``sigma_second``, the second level of the schedule, stands in; the first step's standard deviation is then
    ``noise_level`` exactly.
    """
    x, v = full_precision(x), full_precision(v)
    require_same_shape(x=x, v=v)
    t, t_next = per_sample(sigma, x), per_sample(sigma_next, x)
    dt = t_next - t
    bounded = torch.where(t == 1, per_sample(sigma_second, x), t)
    diffusion = noise_level * (t / (1 - bounded)).sqrt()
    correction = diffusion**2 / (2 * t)
    mean = x * (1 + correction * dt) + v * (1 + correction * (1 - t)) * dt
    return _finish(mean, diffusion * (-dt).sqrt(), noise, sample, density)


def cps_step(
    x: Float[Tensor, " n *d"],
    v: Float[Tensor, " n *d"],
    *,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    noise_level: float = 0.8,
    noise: Float[Tensor, " n *d"] | None = None,
    sample: Float[Tensor, " n *d"] | None = None,
    density: Density = "unnormalised",
) -> StochasticStep:
    """Coefficient-preserving step: ``sin(noise_level pi / 2)`` of the next noise is fresh.

    ``unnormalised`` drops the variance and the normaliser from the log-density, as Adv-GRPO trains it; this
    damps the steps of low noise.
    """
    x, v = full_precision(x), full_precision(v)
    t_next = per_sample(sigma_next, x)
    std = t_next * math.sin(noise_level * math.pi / 2)
    kept = (t_next**2 - std**2).clamp(min=0).sqrt()
    mean = (1 - t_next) * predict_clean(x, v, sigma) + kept * predict_noise(x, v, sigma)
    return _finish(mean, std, noise, sample, density)


def dance_step(
    x: Float[Tensor, " n *d"],
    v: Float[Tensor, " n *d"],
    *,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    noise_level: float = 0.3,
    noise: Float[Tensor, " n *d"] | None = None,
    sample: Float[Tensor, " n *d"] | None = None,
    density: Density = "gaussian",
) -> StochasticStep:
    """DanceGRPO's step (Xue et al. 2025, arXiv 2505.07818): a diffusion of the same ``noise_level`` everywhere.

    ``mean = x + [v + noise_level^2 / 2 (x - (1 - sigma) clean) / sigma^2] dt``; the bracket's second part is
    minus half the squared diffusion times the score.
    """
    x, v = full_precision(x), full_precision(v)
    t, t_next = per_sample(sigma, x), per_sample(sigma_next, x)
    dt = t_next - t
    pull = (x - (1 - t) * predict_clean(x, v, sigma)) / t**2
    mean = x + (v + noise_level**2 / 2 * pull) * dt
    return _finish(mean, noise_level * (-dt).sqrt(), noise, sample, density)


def _finish(
    mean: Tensor, std: Tensor, noise: Tensor | None, sample: Tensor | None, density: Density
) -> StochasticStep:
    """Draw or take the sample and score it."""
    if (noise is None) == (sample is None):
        raise ValueError(
            "Expected either noise (to draw a sample) or sample (to score one), not both or neither."
        )
    if sample is None:
        assert noise is not None
        require_same_shape(mean=mean, noise=noise)
        sample = mean.detach() + std * noise
    require_same_shape(mean=mean, sample=sample)
    sample = sample.detach()
    squared = (sample - mean) ** 2
    if density == "unnormalised":
        log_density = -squared
    elif density == "gaussian":
        log_density = -squared / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
    else:
        raise ValueError(f"Unknown density {density!r}; choose 'gaussian' or 'unnormalised'.")
    return StochasticStep(sample, mean, std.expand_as(mean).flatten(1)[:, 0], mean_dims(log_density))
