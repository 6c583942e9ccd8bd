"""Trains the autoencoder of assets/tiny-sd3 on rendered pictures, from scratch; its decoder alone from where it is.

    python scripts/pretrain_vae.py --work runs/pretrain --minutes 15
    python scripts/pretrain_vae.py --work runs/pretrain --minutes 20 --decoder-only --styles 0.45

Writes ``<work>/vae`` (a diffusers AutoencoderKL folder with the measured scaling and shift) and ``<work>/vae.jsonl``.
With ``--decoder-only`` the encoder stays as it is, so latents made with it remain valid, and the decoder learns on;
that may run beside pretrain_flow.py. ``--styles`` is the share of pictures in the styles of ``imgrl style``.
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
import torch.nn.functional as F
from pretrain_data import styled_batch, training_batch
from torch import Tensor

import imgrl  # noqa: F401  (repairs torchvision before diffusers looks for it)

BATCH, LEARNING_RATE, KL_WEIGHT = 16, 1.5e-3, 1e-4


def load_vae(folder: Path) -> Any:
    """The saved autoencoder with its encoder frozen."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder)
    vae.encoder.requires_grad_(False)
    return vae


def build_vae() -> Any:
    """SD3's autoencoder in small: eightfold downsampling to 16 channels."""
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL  # its annotations name one-element tuples
    return kind(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 48, 96),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


LATENT_NOISE = 0.05  # in latent deviations: a sampled latent is never quite one that the encoder makes


def encode(vae: Any, images: Tensor, *, frozen: bool) -> tuple[Tensor, Tensor]:
    """A latent sample and the divergence from a standard normal, in nats per dimension."""
    with torch.set_grad_enabled(not frozen):
        posterior = vae.encode(images).latent_dist
    if frozen:
        noise = LATENT_NOISE / vae.config.scaling_factor * torch.randn_like(posterior.mean)
        return posterior.mean + noise, images.new_zeros(())
    return posterior.sample(), posterior.kl().mean() / posterior.mean[0].numel()


def vae_loss(vae: Any, images: Tensor, *, frozen: bool) -> tuple[Tensor, dict[str, float]]:
    """Squared and absolute error on pixels, absolute error on edges, and a light pull to a standard normal latent."""
    latents, kl = encode(vae, images, frozen=frozen)
    error = vae.decode(latents).sample.float() - images
    square, pixel = error.square().mean(), error.abs().mean()
    edge = torch.diff(error, dim=-1).abs().mean() + torch.diff(error, dim=-2).abs().mean()
    parts = {"square": square.item(), "pixel": pixel.item(), "edge": edge.item(), "kl": kl.item()}
    return 2 * square + 0.5 * pixel + 0.5 * edge + KL_WEIGHT * kl, parts


def main() -> None:
    """Train until the time is used up, then measure the latent scale and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="highest learning rate")
    parser.add_argument("--styles", type=float, default=0.0, help="share of styled pictures, to a sixteenth")
    args = parser.parse_args()
    if not 0 <= args.styles <= 0.9 or (args.styles and not args.decoder_only):
        parser.error("--styles is a share of at most 0.9 and for the decoder alone: give --decoder-only too")
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    vae = load_vae(args.work / "vae") if args.decoder_only else build_vae()
    average = torch.optim.swa_utils.AveragedModel(
        vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    optimizer = torch.optim.AdamW(
        [p for p in vae.parameters() if p.requires_grad],
        lr=args.rate,
        betas=(0.9, 0.95),
        weight_decay=1e-3,
    )
    start, step = time.monotonic(), 0
    with (args.work / "vae.jsonl").open("a") as log:
        while (progress := (time.monotonic() - start) / (60 * args.minutes)) < 1:
            rate = args.rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * progress))
            optimizer.param_groups[0]["lr"] = max(rate, 1e-5)
            styled = round(BATCH * args.styles)
            images = torch.cat(
                [training_batch(rng, BATCH - styled)[0]] + ([styled_batch(rng, styled)] if styled else [])
            )
            with torch.autocast("cpu", torch.bfloat16):
                loss, parts = vae_loss(vae, images, frozen=args.decoder_only)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(vae)
            step += 1
            if step % 100 == 0:
                row = {
                    "step": step,
                    "samples": step * BATCH,
                    "seconds": round(time.monotonic() - start),
                } | parts
                print(row, flush=True)
                log.write(json.dumps(row) + "\n")
                log.flush()
    save(average.module, rng, args.work / "vae", measure=not args.decoder_only)


@torch.no_grad()
def save(vae: Any, rng: np.random.Generator, folder: Path, *, measure: bool) -> None:
    """Save; ``measure`` first sets the shift and scale that give the latents zero mean and unit deviation."""
    if measure:
        latents = torch.cat([vae.encode(training_batch(rng, 64)[0]).latent_dist.mean for _ in range(16)])
        vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    vae.save_pretrained(folder)
    images = training_batch(rng, 64)[0]
    error = F.l1_loss(vae.decode(vae.encode(images).latent_dist.mean).sample, images)
    print(
        {"shift": vae.config.shift_factor, "scale": vae.config.scaling_factor, "round_trip_l1": error.item()}
    )


if __name__ == "__main__":
    main()
