"""Gives the channels of the trained autoencoder equal weight, exactly, before the flow model is trained on them.

    python scripts/pretrain_whiten.py --work runs/pretrain

An autoencoder puts most variance into a channel or two (here: the background's brightness), and noise then drowns the
others, which hold the shapes, until late in sampling. Stock pipelines scale latents by one number only, so the change
of coordinates is folded into the encoder's last and the decoder's first convolution: pictures stay the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretrain_data import training_batch
from torch import Tensor

import imgrl  # noqa: F401

FLOOR = 0.1  # share of the mean variance added to each channel's: keeps channels without content small
LOG_VARIANCE = -6.0


@torch.no_grad()
def whitening(vae: Any, rng: np.random.Generator, pictures: int = 2048) -> Tensor:
    """Matrix [C, C] from raw latents to decorrelated ones of about unit variance."""
    latents = torch.cat(
        [vae.encode(training_batch(rng, 64)[0]).latent_dist.mean for _ in range(pictures // 64)]
    )
    rows = latents.permute(1, 0, 2, 3).flatten(1)
    variance, directions = torch.linalg.eigh(torch.cov(rows))
    scale = (variance + FLOOR * variance.mean()).rsqrt()
    return scale[:, None] * directions.T


@torch.no_grad()
def fold(vae: Any, matrix: Tensor) -> None:
    """Make the autoencoder speak the coordinates ``matrix @ latent`` without changing any picture."""
    out, into = vae.encoder.conv_out, vae.decoder.conv_in
    channels = len(matrix)
    mean = slice(0, channels)
    out.weight[mean] = torch.einsum("ij,jkhw->ikhw", matrix, out.weight[mean])
    out.bias[mean] = matrix @ out.bias[mean]
    out.weight[channels:], out.bias[channels:] = 0.0, LOG_VARIANCE
    into.weight.copy_(torch.einsum("ijhw,jk->ikhw", into.weight, torch.linalg.inv(matrix)))
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)


def main() -> None:
    """Measure on rendered pictures, fold, and save over ``<work>/vae``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(args.work / "vae")
    rng = np.random.default_rng(args.seed)
    picture = training_batch(rng, 8)[0]
    before = vae.decode(vae.encode(picture).latent_dist.mean).sample
    fold(vae, whitening(vae, rng))
    change = (vae.decode(vae.encode(picture).latent_dist.mean).sample - before).abs().max().item()
    vae.save_pretrained(args.work / "vae")
    print({"largest_change_of_a_pixel": change})


if __name__ == "__main__":
    main()
