"""Trains the transformer and text encoders of assets/tiny-sd3 by plain flow matching, from scratch, resumable.

    python scripts/pretrain_flow.py --work runs/pretrain --minutes 60
    python scripts/pretrain_flow.py --work runs/pretrain --minutes 60 --init assets/tiny-sd3

Needs ``<work>/vae`` from pretrain_vae.py. Caches the latents of rendered pictures in ``<work>/latents.safetensors``,
writes the state every few minutes, and at the end the pipeline folder ``<work>/tiny-sd3``. ``--init`` goes on from the
weights of such a folder, its autoencoder included; the optimiser starts anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretrain_data import TASK_SHARES, TEXT, training_batch
from pretrain_model import Model, assemble
from pretrain_tokenizer import build_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import imgrl  # noqa: F401

BATCH, LEARNING_RATE, CAPTION_DROPOUT, EMA_DECAY = 128, 1.5e-3, 0.1, 0.999


@torch.no_grad()
def cache_latents(work: Path, count: int, tokenizer: Any, seed: int, **shares: float) -> dict[str, Tensor]:
    """Latents (scaled as the pipeline scales them) and token ids of ``count`` rendered pictures."""
    from diffusers import AutoencoderKL

    file = work / "latents.safetensors"
    if file.exists():
        return load_file(file)
    vae: Any = AutoencoderKL.from_pretrained(work / "vae")
    rng = np.random.default_rng(seed)
    latents, ids = [], []
    while sum(map(len, latents)) < count:
        images, captions = training_batch(rng, 250, tidy=True, **shares)
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(images).latent_dist.mean
        latents.append(
            ((mean.float() - vae.config.shift_factor) * vae.config.scaling_factor).half().contiguous()
        )
        ids.append(tokenize(tokenizer, captions))
    cache = {"latents": torch.cat(latents), "ids": torch.cat(ids)}
    save_file(cache, file)
    return cache


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """Padded token ids, as the pipeline makes them."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def draw_sigma(count: int) -> Tensor:
    """Logit-normal around the high noise levels, where pictures are decided: below 0.5 the model is soon right."""
    return torch.sigmoid(1.1 + torch.randn(count))


def main() -> None:
    """Train until the time is used up and save the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--signs", type=float, default=TASK_SHARES[TEXT], help="share of signs among the pictures"
    )
    parser.add_argument(
        "--wrong",
        type=float,
        default=0.15,
        help="share of wrong attributes in captions: what a base model is for",
    )
    parser.add_argument("--init", type=Path, help="a pipeline folder to go on from")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.init is not None and not (args.work / "vae").exists():
        shutil.copytree(args.init / "vae", args.work / "vae")
    tokenizer = build_tokenizer()
    cache = cache_latents(args.work, args.pictures, tokenizer, args.seed, signs=args.signs, wrong=args.wrong)
    empty = tokenize(tokenizer, [""])
    torch.manual_seed(args.seed)
    model = Model(tokenizer)
    if args.init is not None:
        load_parts(model, args.init)
    average: Any = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    )
    optimizers = build_optimizers(model)
    spent, step = restore(args.work, model, average, optimizers)
    start, saved = time.monotonic() - spent, time.monotonic()
    losses: list[float] = []
    for block in model.transformer.transformer_blocks:
        block.compile()
    # Plain matrix products: the fused attention kernels are slow at 33 tokens on a CPU.
    with sdpa_kernel(SDPBackend.MATH), (args.work / "flow.jsonl").open("a") as log:
        while (progress := (time.monotonic() - start) / (60 * args.minutes)) < 1:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, (step + 1) / 100) * (1 - progress)
            losses.append(train_step(model, optimizers, cache, empty))
            average.update_parameters(model)
            step += 1
            if step % 100 == 0:
                row: dict[str, float] = {
                    "step": step,
                    "samples": step * BATCH,
                    "seconds": round(time.monotonic() - start),
                }
                row["loss"] = round(sum(losses) / len(losses), 5)
                losses.clear()
                print(row, flush=True)
                log.write(json.dumps(row) + "\n")
                log.flush()
            if time.monotonic() - saved > 300:
                saved = time.monotonic()
                keep(args.work, model, average, optimizers, saved - start, step)
    keep(args.work, model, average, optimizers, time.monotonic() - start, step)
    assemble(average.module, tokenizer, args.work)


def build_optimizers(model: Model) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the networks, AdamW for embeddings, vectors and the output projection."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "embedding" not in name and "proj_out" not in name
        (matrices if inner else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train_step(
    model: Model, optimizers: list[torch.optim.Optimizer], cache: dict[str, Tensor], empty: Tensor
) -> float:
    """One flow-matching step on a random batch; returns the loss."""
    index = torch.randint(len(cache["latents"]), (BATCH,))
    clean, ids = cache["latents"][index].float(), cache["ids"][index].clone()
    ids[torch.rand(BATCH) < CAPTION_DROPOUT] = empty
    sigma, noise = draw_sigma(BATCH), torch.randn_like(clean)
    level = sigma.view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model((1 - level) * clean + level * noise, sigma, ids)
    loss = (velocity.float() - (noise - clean)).square().mean()
    model.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def load_parts(model: Model, folder: Path) -> None:
    """Load the transformer and the text encoders of a pipeline folder."""
    files = {
        "transformer": "diffusion_pytorch_model.safetensors",
        "text_encoder": "model.safetensors",
        "text_encoder_2": "model.safetensors",
    }
    for part, file in files.items():
        getattr(model, part).load_state_dict(load_file(folder / part / file))


def keep(work: Path, model: Any, average: Any, optimizers: list[Any], seconds: float, step: int) -> None:
    """Save everything that the next run needs to go on."""
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    torch.save(state | {"seconds": seconds, "step": step}, work / "state.tmp")
    (work / "state.tmp").rename(work / "state.pt")


def restore(work: Path, model: Any, average: Any, optimizers: list[Any]) -> tuple[float, int]:
    """Load the saved state, if any; returns the seconds spent and the steps done."""
    if not (work / "state.pt").exists():
        return 0.0, 0
    state = torch.load(work / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["seconds"], state["step"]


if __name__ == "__main__":
    main()
