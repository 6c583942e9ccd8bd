"""Trains the transformer and text encoders of assets/tiny-sd3 by plain flow matching, from scratch, resumable.

    python scripts/pretrain_flow.py --work runs/pretrain --minutes 60

Needs ``<work>/vae`` from pretrain_vae.py. Caches the latents of rendered pictures in ``<work>/latents.safetensors``,
writes the state every few minutes, and at the end the pipeline folder ``<work>/tiny-sd3``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretrain_data import training_batch
from pretrain_tokenizer import build_tokenizer
from pretrain_zeros import repeat_last_token
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import imgrl  # noqa: F401

BATCH, LEARNING_RATE, CAPTION_DROPOUT, EMA_DECAY = 128, 1.5e-3, 0.1, 0.999
# Stock diffusers pads the missing T5's place with this many zero tokens; imgrl's own recipes use none. Both occur.
STOCK_ZEROS, ZEROS_SHARE = 256, 0.25
ENCODER_WIDTH, WIDTH, HEADS, LAYERS = 96, 192, 6, 5


def build_encoder(vocabulary: int, eos: int, seed: int) -> nn.Module:
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


def build_transformer(seed: int) -> nn.Module:
    """SD3's transformer in small: 8 x 8 latents of 16 channels in 16 patches."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(seed)
    return SD3Transformer2DModel(
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


class Model(nn.Module):
    """What is trained: two text encoders and the transformer, wired as StableDiffusion3Pipeline wires them."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        eos = tokenizer.eos_token_id
        self.text_encoder = build_encoder(len(tokenizer), eos, seed=1)
        self.text_encoder_2 = build_encoder(len(tokenizer), eos, seed=2)
        self.transformer = build_transformer(seed=3)

    def forward(self, noisy: Tensor, sigma: Tensor, ids: Tensor, zeros: int) -> Tensor:
        outputs = [e(ids, output_hidden_states=True) for e in (self.text_encoder, self.text_encoder_2)]
        hidden = torch.cat([o.hidden_states[-2] for o in outputs], -1)
        pooled = torch.cat([o.text_embeds for o in outputs], -1)
        if zeros:
            hidden = torch.cat([hidden, hidden.new_zeros(len(hidden), 1, hidden.shape[-1])], 1)
        with repeat_last_token(self.transformer, zeros):
            return self.transformer(noisy, hidden, pooled, sigma * 1000, return_dict=False)[0]


@torch.no_grad()
def cache_latents(work: Path, count: int, tokenizer: Any, seed: int) -> dict[str, Tensor]:
    """Latents (scaled as the pipeline scales them) and token ids of ``count`` rendered pictures."""
    from diffusers import AutoencoderKL

    file = work / "latents.safetensors"
    if file.exists():
        return load_file(file)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    rng = np.random.default_rng(seed)
    latents, ids = [], []
    while sum(map(len, latents)) < count:
        images, captions = training_batch(rng, 250)
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(images).latent_dist.mean
        latents.append(((mean.float() - vae.config.shift_factor) * vae.config.scaling_factor).half().contiguous())
        ids.append(tokenize(tokenizer, captions))
    cache = {"latents": torch.cat(latents), "ids": torch.cat(ids)}
    save_file(cache, file)
    return cache


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """Padded token ids, as the pipeline makes them."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def draw_sigma(count: int) -> Tensor:
    """Logit-normal around the middle-to-high noise levels, where layout is decided."""
    return torch.sigmoid(0.6 + 1.2 * torch.randn(count))


def main() -> None:
    """Train until the time is used up and save the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = build_tokenizer()
    cache = cache_latents(args.work, args.pictures, tokenizer, args.seed)
    empty = tokenize(tokenizer, [""])
    torch.manual_seed(args.seed)
    model = Model(tokenizer)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    spent, step = restore(args.work, model, average, optimizer)
    start, saved = time.monotonic() - spent, time.monotonic()
    losses: list[float] = []
    with (args.work / "flow.jsonl").open("a") as log:
        while (progress := (time.monotonic() - start) / (60 * args.minutes)) < 1:
            rate = LEARNING_RATE * min(1, (step + 1) / 500) * min(1, 3 * (1 - progress))
            optimizer.param_groups[0]["lr"] = rate
            losses.append(train_step(model, optimizer, cache, empty))
            average.update_parameters(model)
            step += 1
            if step % 100 == 0:
                row = {"step": step, "samples": step * BATCH, "seconds": round(time.monotonic() - start)}
                row["loss"] = round(sum(losses) / len(losses), 5)
                losses.clear()
                print(row, flush=True)
                log.write(json.dumps(row) + "\n")
                log.flush()
            if time.monotonic() - saved > 300:
                saved = time.monotonic()
                keep(args.work, model, average, optimizer, saved - start, step)
    keep(args.work, model, average, optimizer, time.monotonic() - start, step)
    assemble(average.module, tokenizer, args.work)


def train_step(model: Model, optimizer: torch.optim.Optimizer, cache: dict[str, Tensor], empty: Tensor) -> float:
    """One flow-matching step on a random batch; returns the loss."""
    index = torch.randint(len(cache["latents"]), (BATCH,))
    clean, ids = cache["latents"][index].float(), cache["ids"][index].clone()
    ids[torch.rand(BATCH) < CAPTION_DROPOUT] = empty
    sigma, noise = draw_sigma(BATCH), torch.randn_like(clean)
    level = sigma.view(-1, 1, 1, 1)
    zeros = STOCK_ZEROS if torch.rand(()) < ZEROS_SHARE else 0
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model((1 - level) * clean + level * noise, sigma, ids, zeros)
    loss = (velocity.float() - (noise - clean)).square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def keep(work: Path, model: Any, average: Any, optimizer: Any, seconds: float, step: int) -> None:
    """Save everything that the next run needs to go on."""
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state | {"seconds": seconds, "step": step}, work / "state.tmp")
    (work / "state.tmp").rename(work / "state.pt")


def restore(work: Path, model: Any, average: Any, optimizer: Any) -> tuple[float, int]:
    """Load the saved state, if any; returns the seconds spent and the steps done."""
    if not (work / "state.pt").exists():
        return 0.0, 0
    state = torch.load(work / "state.pt", weights_only=True)
    for name, target in (("model", model), ("average", average), ("optimizer", optimizer)):
        target.load_state_dict(state[name])
    return state["seconds"], state["step"]


def silent_t5() -> nn.Module:
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


def assemble(model: Model, tokenizer: Any, work: Path) -> None:
    """Write the stock pipeline folder ``<work>/tiny-sd3``."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    StableDiffusion3Pipeline(
        transformer=model.transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=model.text_encoder.eval(),
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2.eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=silent_t5(),
        tokenizer_3=t5_tokenizer(),
    ).save_pretrained(work / "tiny-sd3")


if __name__ == "__main__":
    main()
