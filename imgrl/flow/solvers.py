"""Deterministic sampling: the probability-flow ODE by Euler, or by DPM-Solver++ of second order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.flow.conventions import predict_clean, require_same_shape

__all__ = ["dpm2_step", "euler_step", "sample_ode"]


def euler_step(
    x: Float[Tensor, " n *d"], v: Float[Tensor, " n *d"], *, sigma: float, sigma_next: float
) -> Float[Tensor, " n *d"]:
    """Euler's rule, ``x + (sigma_next - sigma) v``."""
    require_same_shape(x=x, v=v)
    return x + (sigma_next - sigma) * v


def dpm2_step(
    x: Float[Tensor, " n *d"],
    clean: Float[Tensor, " n *d"],
    previous_clean: Float[Tensor, " n *d"] | None = None,
    *,
    sigma: float,
    sigma_next: float,
    sigma_previous: float | None = None,
    first_order: bool = False,
) -> Float[Tensor, " n *d"]:
    """One step of DPM-Solver++ 2M (Lu et al. 2022, Algorithm 2) in the log signal-to-noise ratio.

    ``clean`` and ``previous_clean`` are the predictions at ``sigma`` and at the level before it. The
    prediction is extrapolated half a step ahead in ``log((1 - sigma) / sigma)``, which is infinite at both
    ends: there, and with ``first_order=True``, the step is Euler's.
    """
    keep = sigma_next / sigma
    if (
        first_order
        or sigma_next == 0
        or previous_clean is None
        or sigma_previous is None
        or sigma_previous == 1
    ):
        ahead = clean
    else:
        step = _log_snr(sigma_next) - _log_snr(sigma)
        slope = 0.5 * step / (_log_snr(sigma) - _log_snr(sigma_previous))
        ahead = clean + slope * (clean - previous_clean)
    return keep * x + (1 - keep) * ahead


def _log_snr(sigma: float) -> float:
    return math.log((1 - sigma) / sigma)


@torch.no_grad()
def sample_ode(
    velocity_fn: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, " n *d"],
    sigmas: Float[Tensor, " levels"],
    *,
    solver: Literal["euler", "dpm2"] = "euler",
    callback: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, " n *d"]:
    """Integrate from ``sigmas[0]`` to ``sigmas[-1]`` and return the final state.

    ``velocity_fn(x, sigma)`` receives the level as a scalar tensor. ``callback(i, x)`` sees the state after
    step ``i``. ``dpm2`` takes its first and last step by Euler, as DiffusionNFT does.
    """
    if solver not in ("euler", "dpm2"):
        raise ValueError(f"Unknown solver {solver!r}; choose 'euler' or 'dpm2'.")
    if sigmas.ndim != 1 or len(sigmas) < 2 or not bool((sigmas[:-1] > sigmas[1:]).all()):
        raise ValueError("Expected at least two strictly falling noise levels; use sigma_schedule(steps).")
    levels = [float(level) for level in sigmas.cpu()]
    previous_clean: Tensor | None = None
    for i, (sigma, sigma_next) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        v = velocity_fn(x, sigmas[i])
        if solver == "euler":
            x = euler_step(x, v, sigma=sigma, sigma_next=sigma_next)
        else:
            clean = predict_clean(x, v, sigma)
            x = dpm2_step(
                x,
                clean,
                previous_clean,
                sigma=sigma,
                sigma_next=sigma_next,
                sigma_previous=levels[i - 1] if i > 0 else None,
                first_order=i == len(levels) - 2,
            )
            previous_clean = clean
        if callback is not None:
            callback(i, x)
    return x
