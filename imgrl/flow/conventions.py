"""Noising, velocity, predictions and schedules of rectified flow (Liu et al. 2022; Esser et al. 2024)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "add_noise",
    "full_precision",
    "guided",
    "mean_dims",
    "per_sample",
    "predict_clean",
    "predict_noise",
    "require_same_shape",
    "shift_sigma",
    "sigma_schedule",
    "velocity_target",
]


def full_precision(x: Float[Tensor, " *d"]) -> Float[Tensor, " *d"]:
    """Return ``x`` in float32 (float64 stays): half precision loses the small differences we train on."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def require_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all named tensors have one shape; broadcasting here is always a mistake."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"Expected tensors of one shape, got {listed}; pass the same samples to each.")


def per_sample(values: Tensor | float, like: Float[Tensor, " n *d"]) -> Tensor:
    """Shape a number, a scalar tensor or ``[n]`` so that it multiplies ``like`` sample by sample."""
    values = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if values.ndim == 0:
        return values
    if values.shape != like.shape[:1]:
        raise ValueError(
            f"Expected one noise level or one per sample ({like.shape[0]}), got shape {tuple(values.shape)}; "
            "pass a scalar or a vector as long as the batch."
        )
    return values.view(-1, *[1] * (like.ndim - 1))


def mean_dims(x: Float[Tensor, " n *d"]) -> Float[Tensor, " n"]:
    """Mean over every axis but the first; per-sample losses are means over the latent, never sums."""
    return x.flatten(1).mean(1)


def add_noise(
    clean: Float[Tensor, " n *d"], noise: Float[Tensor, " n *d"], sigma: Tensor | float
) -> Float[Tensor, " n *d"]:
    """State at ``sigma`` (scalar or [n]): ``(1 - sigma) clean + sigma noise``."""
    require_same_shape(clean=clean, noise=noise)
    level = per_sample(sigma, clean)
    return (1 - level) * clean + level * noise


def velocity_target(clean: Float[Tensor, " n *d"], noise: Float[Tensor, " n *d"]) -> Float[Tensor, " n *d"]:
    """Velocity to regress, ``noise - clean``."""
    require_same_shape(clean=clean, noise=noise)
    return noise - clean


def predict_clean(
    x: Float[Tensor, " n *d"], v: Float[Tensor, " n *d"], sigma: Tensor | float
) -> Float[Tensor, " n *d"]:
    """Clean sample implied by a velocity: ``x - sigma v``."""
    require_same_shape(x=x, v=v)
    return x - per_sample(sigma, x) * v


def predict_noise(
    x: Float[Tensor, " n *d"], v: Float[Tensor, " n *d"], sigma: Tensor | float
) -> Float[Tensor, " n *d"]:
    """Noise implied by a velocity: ``x + (1 - sigma) v``."""
    require_same_shape(x=x, v=v)
    return x + (1 - per_sample(sigma, x)) * v


def guided(
    cond: Float[Tensor, " n *d"], uncond: Float[Tensor, " n *d"], *, scale: float
) -> Float[Tensor, " n *d"]:
    """Classifier-free guidance (Ho and Salimans 2022): ``uncond + scale (cond - uncond)``."""
    require_same_shape(cond=cond, uncond=uncond)
    return uncond + scale * (cond - uncond)


def shift_sigma(u: Tensor, *, shift: float) -> Tensor:
    """SD3's resolution shift (Esser et al. 2024, eq. 23): ``shift u / (1 + (shift - 1) u)``; 0 and 1 stay."""
    if shift <= 0:
        raise ValueError(f"Expected a positive shift, got {shift}; SD3 uses 3.0 and 1.0 means none.")
    return shift * u / (1 + (shift - 1) * u)


def sigma_schedule(
    steps: int,
    *,
    shift: float = 3.0,
    kind: Literal["default", "explicit"] = "default",
    num_train_timesteps: int = 1000,
) -> Float[Tensor, " steps_plus_one"]:
    """Noise levels of a sampling run, float32 ``[steps + 1]``, from 1 down to exactly 0.

    ``default`` is what diffusers' FlowMatchEulerDiscreteScheduler does by itself: it shifts its lowest level
    once when built and again with the grid, so the last level above 0 is very clean. ``explicit`` shifts the
    even grid ``linspace(1, 1/steps, steps)`` once.
    """
    if steps < 1:
        raise ValueError(f"Expected at least 1 sampling step, got {steps}.")
    if kind == "default":
        lowest = shift_sigma(torch.tensor(1 / num_train_timesteps, dtype=torch.float64), shift=shift)
        grid = torch.linspace(1.0, lowest.item(), steps, dtype=torch.float64)
    elif kind == "explicit":
        grid = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64)
    else:
        raise ValueError(f"Unknown schedule {kind!r}; choose 'default' or 'explicit'.")
    return torch.cat([shift_sigma(grid, shift=shift), grid.new_zeros(1)]).float()
