"""Tiny SD3 and Flux pipelines with random weights, built from configurations of the real classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

import imgrl  # noqa: F401

_SCRIPT = Path(__file__).parents[1] / "scripts" / "make_tiny_flux.py"
_spec = importlib.util.spec_from_file_location("make_tiny_flux", _SCRIPT)
assert _spec is not None and _spec.loader is not None
flux: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(flux)


def build_sd3(*, t5: bool = False, shift: float = 3.0, qk_norm: str | None = None, seed: int = 0) -> Any:
    """A tiny StableDiffusion3Pipeline: two blocks of width 32, 16 latent channels, 8x VAE, 64 px."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    tokenizer = flux.clip_tokenizer()

    def encoder() -> Any:
        return CLIPTextModelWithProjection(CLIPTextConfig(**flux.clip_config(tokenizer, 16))).eval()

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        qk_norm=qk_norm,
    )
    tokenizer_3 = flux.t5_tokenizer() if t5 else None
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=flux.vae(16).eval(),
        text_encoder=encoder(),
        tokenizer=tokenizer,
        text_encoder_2=encoder(),
        tokenizer_2=flux.clip_tokenizer(),
        text_encoder_3=flux.t5_encoder(tokenizer_3, 32).eval() if t5 else None,
        tokenizer_3=tokenizer_3,
    )


def sd3_inputs() -> dict[str, torch.Tensor]:
    """What the transformer of :func:`build_sd3` is called with: two images, five text tokens each."""
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 16, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 32, generator=generator),
        "pooled_projections": torch.randn(2, 32, generator=generator),
        "timestep": torch.tensor([100.0, 900.0]),
    }


def build_flux(**options: Any) -> Any:
    """A tiny FluxPipeline; see ``scripts/make_tiny_flux.py``."""
    return flux.build(**options)
