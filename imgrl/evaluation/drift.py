"""How far the trained velocity has moved in length from the pretrained one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imgrl import flow
from imgrl.types import Conditioning

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = ["velocity_norm_ratio"]


@torch.no_grad()
def velocity_norm_ratio(
    policy: Policy, latents: Tensor, cond: Conditioning, sigmas: Tensor, seed: int, *, batch: int = 64
) -> float:
    """Mean of ``||v_current|| / ||v_frozen||`` over fixed noised points; 1 before training.

    A ratio that leaves 1 by far says that the policy left the region where its velocities make sense (burnt,
    over-saturated images) before a score shows it.

    Args:
        policy: a policy with the weights "current" and "frozen".
        latents: clean latents [n, C, h, w].
        cond: text embeddings of their n prompts.
        sigmas: noise levels, any number; point i takes the i-th in turn, levels 0 are left out.
        seed: of the noise.
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
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean.device)
    level = levels[torch.arange(len(clean)) % len(levels)].to(clean.device)
    noisy = flow.add_noise(clean, noise, level)
    ratios = []
    for rows in torch.arange(len(clean), device=clean.device).split(batch):
        part = Conditioning(tensors={name: tensor[rows] for name, tensor in cond.tensors.items()})
        current, frozen = (
            policy.velocity(noisy[rows], level[rows], part, weights=name).flatten(1).norm(dim=1)
            for name in ("current", "frozen")
        )
        ratios.append(current / frozen)
    return float(torch.cat(ratios).cpu().double().mean())
