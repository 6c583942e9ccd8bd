"""Flux.1."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from imgrl.policies.base import Policy
from imgrl.policies.lora import JOINT_ATTENTION

__all__ = ["FluxPolicy"]


class FluxPolicy(Policy):
    """Flux.1: 2 x 2 latent cells make a token, timestep sigma, guidance distilled into an embedding.

    ``distilled_guidance`` is the number fed to that embedding in every forward (3.5 in the stock pipeline;
    schnell has no such embedding). The ``guidance`` of :meth:`velocity` and :meth:`sample` is true
    classifier-free guidance.
    """

    family: ClassVar[str] = "flux"
    pipeline_class: ClassVar[str] = "FluxPipeline"
    default_length: ClassVar[int] = 512
    default_targets: ClassVar[tuple[str, ...]] = (
        *JOINT_ATTENTION,
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )

    distilled_guidance: float = 3.5

    @property
    def _channels(self) -> int:
        return self.transformer.config.in_channels // 4

    @property
    def _patch(self) -> int:
        return 2

    @property
    def _default_latent_size(self) -> int:
        return 128

    def _encode_text(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        embeds, pooled, _ = pipeline.encode_prompt(
            [prompt], device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _forward(self, transformer: Any, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        n, _, h, w = x.shape
        guidance = None
        if transformer.config.guidance_embeds:
            guidance = torch.full([n], self.distilled_guidance, device=x.device, dtype=torch.float32)
        packed = transformer(
            hidden_states=pack(x),
            timestep=sigma * 1000 / 1000,  # the stock pipeline's round trip, to the last bit
            guidance=guidance,
            pooled_projections=cond["pooled_prompt_embeds"],
            encoder_hidden_states=cond["prompt_embeds"],
            txt_ids=torch.zeros(cond["prompt_embeds"].shape[1], 3, device=x.device),
            img_ids=image_ids(h // 2, w // 2, x.device),
            return_dict=False,
        )[0]
        return unpack(packed, h, w)

    def _grid(self, steps: int) -> dict[str, Any]:
        if self.scheduler.config.get("use_flow_sigmas", False):
            return {"num_inference_steps": steps}
        return {"sigmas": np.linspace(1.0, 1 / steps, steps)}

    def _check_length(self) -> None:
        super()._check_length()
        if self.max_sequence_length == 0:
            from imgrl.errors import ConfigError

            raise ConfigError(
                "max_sequence_length must be at least 1 for Flux: its T5 encoder needs a token."
            )


def pack(x: Tensor) -> Tensor:
    """Latents [n, C, h, w] to tokens [n, h/2 * w/2, 4C]: channel, then row, then column within a token."""
    n, c, h, w = x.shape
    return (
        x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, (h // 2) * (w // 2), c * 4)
    )


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """Tokens [n, h/2 * w/2, 4C] back to latents [n, C, h, w]; inverse of :func:`pack`."""
    n, _, d = tokens.shape
    return tokens.reshape(n, h // 2, w // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, d // 4, h, w)


def image_ids(rows: int, columns: int, device: torch.device) -> Tensor:
    """Rotary positions (0, row, column) of the image tokens, float32 [rows * columns, 3]."""
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(-1, 2).float()
    return torch.cat([torch.zeros(grid.shape[0], 1), grid], dim=1).to(device)
