"""How far the trained velocity has moved in length from the pretrained one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imgrl import flow
from imgrl.types import Conditioning

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = ["velocity_norm_ratios"]


@torch.no_grad()
def velocity_norm_ratios(
    policy: Policy,
    latents: Tensor,
    cond: Conditioning,
    sigmas: Tensor,
    seed: int,
    *,
    weights: str = "current",
    points: Tensor | None = None,
    total: int | None = None,
    batch: int = 64,
) -> Tensor:
    """``||v|| / ||v_frozen||`` [n], float64, of fixed noised points; 1 before training.

    A ratio that leaves 1 by far says that the policy left the region where its velocities make sense (burnt,
    over-saturated images) before a score shows it.

    Args:
        policy: a policy with the weights "frozen" and those asked about.
        latents: clean latents [n, C, h, w].
        cond: text embeddings of their n prompts.
        sigmas: noise levels, any number; point i takes the i-th in turn, levels 0 are left out.
        seed: of the noise.
        weights: the trained ones.
        points: number int64 [n] of each latent among all points, which fixes its noise and level, so that several
            processes may share them; None is all of them in turn.
        total: how many points there are; None is n.
        batch: points a forward pass.

    Raises:
        ValueError: if there is no point or no level above 0.
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float32).cpu()
    levels = levels[levels > 0]
    if len(latents) == 0 or len(levels) == 0:
        raise ValueError(
            f"Drift needs latents and a level above 0, got {len(latents)} latents, {len(levels)} levels."
        )
    clean = latents.to(policy.device, torch.float32)
    chosen = torch.arange(len(clean)) if points is None else points.cpu()
    shape = (len(clean) if total is None else total, *clean.shape[1:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))[chosen].to(clean.device)
    level = levels[chosen % len(levels)].to(clean.device)
    noisy = flow.add_noise(clean, noise, level)
    ratios = []
    for rows in torch.arange(len(clean), device=clean.device).split(batch):
        part = Conditioning(tensors={name: tensor[rows] for name, tensor in cond.tensors.items()})
        current, frozen = (
            policy.velocity(noisy[rows], level[rows], part, weights=name).flatten(1).norm(dim=1)
            for name in (weights, "frozen")
        )
        ratios.append(current / frozen)
    return torch.cat(ratios).cpu().double()
