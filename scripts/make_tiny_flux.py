"""Write a tiny Flux pipeline with random weights: a FluxPipeline folder below 1 MB, for tests.

    python scripts/make_tiny_flux.py assets/tiny-flux

Its images are noise. It has every part of Flux.1-dev: packing, rotary ids, distilled guidance, T5 and CLIP.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path
from typing import Any

import imgrl  # noqa: F401  # first, so that a CUDA-built torchvision does not break the imports below


def clip_tokenizer(length: int = 16) -> Any:
    """A CLIP tokenizer of single characters: any lower-case ASCII prompt has an encoding."""
    from transformers import CLIPTokenizer

    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=length
    )


def t5_tokenizer() -> Any:
    """A T5 (unigram) tokenizer of single characters."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0)]
    characters = ["\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    return T5Tokenizer(vocab=[*special, *((c, -1.0) for c in characters)], extra_ids=0)


def clip_config(tokenizer: Any, hidden: int) -> dict[str, Any]:
    """Settings of a two-layer CLIP text model for ``tokenizer``."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "projection_dim": hidden,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def t5_encoder(tokenizer: Any, hidden: int) -> Any:
    """A two-layer T5 encoder for ``tokenizer``."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=hidden,
        d_kv=hidden // 2,
        d_ff=2 * hidden,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def vae(channels: int = 4) -> Any:
    """A VAE with 8x downsampling and ``channels`` latent channels."""
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL  # its annotations allow one level only
    return kind(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build(*, guidance_embeds: bool = True, dynamic_shifting: bool = True, seed: int = 0) -> Any:
    """A tiny FluxPipeline with random weights.

    ``guidance_embeds`` and ``dynamic_shifting`` are both true for Flux.1-dev and both false for schnell.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if dynamic_shifting else 1.0, use_dynamic_shifting=dynamic_shifting
    )
    return FluxPipeline(
        scheduler=scheduler,
        vae=vae().eval(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**clip_config(tokenizer, 32))).eval(),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(tokenizer_2, 32).eval(),
        tokenizer_2=tokenizer_2,
        transformer=transformer.eval(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    build(seed=options.seed).save_pretrained(options.folder)
    size = sum(file.stat().st_size for file in options.folder.rglob("*") if file.is_file())
    print(f"{options.folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
