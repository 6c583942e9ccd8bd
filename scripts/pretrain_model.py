"""The parts of assets/tiny-sd3 and how they make a stock StableDiffusion3Pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import imgrl  # noqa: F401
from imgrl.policies.zero_tokens import install

ENCODER_WIDTH, WIDTH, HEADS, LAYERS = 96, 192, 6, 5
STOCK_ZEROS = 256  # stock diffusers pads the missing T5's place with so many zero tokens


def build_encoder(vocabulary: int, eos: int, seed: int) -> Any:
    """A two-layer CLIP text encoder with projection."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=ENCODER_WIDTH,
            intermediate_size=4 * ENCODER_WIDTH,
            projection_dim=ENCODER_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=eos - 1,
            eos_token_id=eos,
            pad_token_id=eos,
            initializer_range=0.02,
        )
    )


def build_transformer(seed: int) -> Any:
    """SD3's transformer in small: 8 x 8 latents of 16 channels in 16 patches."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * ENCODER_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * ENCODER_WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    start_as_identity(transformer)
    return transformer


def start_as_identity(transformer: Any) -> None:
    """DiT's initialisation, which diffusers leaves to the caller: blocks begin as the identity, the output as zero."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
                nn.init.zeros_(module.weight)
    nn.init.xavier_uniform_(transformer.pos_embed.proj.weight.flatten(1))


class Model(nn.Module):
    """What is trained: two text encoders and the transformer, wired as StableDiffusion3Pipeline wires them."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        eos = tokenizer.eos_token_id
        self.text_encoder = build_encoder(len(tokenizer), eos, seed=1)
        self.text_encoder_2 = build_encoder(len(tokenizer), eos, seed=2)
        self.transformer = build_transformer(seed=3)
        self.repeats = install(self.transformer)

    def forward(self, noisy: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
        outputs = [e(ids, output_hidden_states=True) for e in (self.text_encoder, self.text_encoder_2)]
        hidden = torch.cat([o.hidden_states[-2] for o in outputs], -1)
        pooled = torch.cat([o.text_embeds for o in outputs], -1)
        hidden = torch.cat([hidden, hidden.new_zeros(len(hidden), 1, hidden.shape[-1])], 1)
        self.repeats.count = STOCK_ZEROS
        return self.transformer(noisy, hidden, pooled, sigma * 1000, return_dict=False)[0]


def silent_t5() -> Any:
    """A one-layer T5 whose output is exactly zero: what stock diffusers puts in the place of a missing T5.

    ``StableDiffusion3Pipeline.from_pretrained`` refuses a folder without one unless the caller repeats that it is
    missing, so the folder holds this one instead.
    """
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=8, d_model=2 * ENCODER_WIDTH, d_kv=1, d_ff=1, num_layers=1, num_heads=1)
    model = T5EncoderModel(config)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model.eval()


def t5_tokenizer() -> Any:
    """A T5 tokenizer that knows nothing."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def assemble(model: Any, tokenizer: Any, work: Path) -> None:
    """Write the stock pipeline folder ``<work>/tiny-sd3``."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    vae: Any = AutoencoderKL.from_pretrained(work / "vae")
    vae.register_to_config(_name_or_path="vae")  # or the folder would say where it was made
    StableDiffusion3Pipeline(
        transformer=model.transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=model.text_encoder.eval(),
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2.eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=silent_t5(),
        tokenizer_3=t5_tokenizer(),
    ).save_pretrained(work / "tiny-sd3")
