"""Images per second by phase, for the tiny model and for SD3.5-medium's real configuration with random weights.

    python scripts/bench.py                        # here: CPU, SD3.5-medium at reduced depth
    python scripts/bench.py --device cuda --json assets/benchmarks/gpu.json

Rates are the best of ``--repeats`` after one warm-up. The achieved TFLOP/s count every matrix product and convolution
of the phase once (torch's flop counter) and stand beside the device's measured rate for a large matrix product.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import imgrl  # noqa: F401
from imgrl.anchor.divergence import velocity_gap
from imgrl.data.prompts import load_prompts
from imgrl.evaluation.shapes import score_images
from imgrl.policies import LoraSpec, Policy, load_policy
from imgrl.resources import asset
from imgrl.types import Conditioning, Prompt

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sd35_medium(layers: int, device: str, dtype: torch.dtype) -> Policy:
    """SD3.5-medium with random weights and ``layers`` of its 24 blocks, LoRA of rank 32 on its attention."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    from imgrl.policies.loading import attach_weights
    from imgrl.policies.sd3 import SD3Policy

    with torch.device(device):
        transformer: Any = SD3Transformer2DModel(
            sample_size=64,
            num_layers=layers,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(min(13, layers))),
            qk_norm="rms_norm",
        )
        kind: Any = AutoencoderKL  # its annotations name one-element tuples
        vae = kind(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    policy = SD3Policy(
        Path("sd3.5-medium-random"),
        transformer=transformer.to(dtype).eval(),
        vae=vae.eval().requires_grad_(False),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        dtype=dtype,
        device=torch.device(device),
    )
    policy.weights = attach_weights(policy, "lora", LoraSpec(), ("old", "sampling"))
    return policy


def random_conditioning(policy: Policy, count: int, tokens: int) -> Conditioning:
    """Stand-in for text embeddings: the encoders are no part of a training round."""
    config = policy.transformer.config
    shape = (count, tokens, config.joint_attention_dim)
    return Conditioning(
        tensors={
            "prompt_embeds": torch.randn(shape, device=policy.device, dtype=policy.dtype),
            "pooled_prompt_embeds": torch.randn(
                count, config.pooled_projection_dim, device=policy.device, dtype=policy.dtype
            ),
        }
    )


def phases(
    policy: Policy, cond: Conditioning, steps: int, prompts: list[Prompt] | None = None
) -> dict[str, tuple[Callable[[], Any], float]]:
    """Each phase as (work, images that one call handles); the judge of the shape world reads its ``prompts``."""
    count = len(cond.tensors["prompt_embeds"])
    negative = Conditioning(tensors={k: v[:1] for k, v in cond.tensors.items()})
    noise = policy.initial_noise(range(count))
    sigma = torch.full((count,), 0.7, device=policy.device)

    def rollout() -> Tensor:
        return policy.sample(cond, range(count), steps=steps, weights="sampling")

    def old() -> Tensor:
        return policy.velocity(noise, sigma, cond, weights="old")

    def anchor() -> Tensor:
        return policy.velocity(noise, sigma, cond, weights="frozen", guidance=4.5, negative=negative)

    def train() -> None:
        velocity_gap(policy.velocity(noise, sigma, cond), noise).sum().backward()

    judged = {}
    if prompts:
        images = policy.decode(rollout())
        judged = {"reward (shapes)": (lambda: score_images(images, prompts), count)}
    return {
        f"rollout ({steps} steps)": (rollout, count),
        "decode": (lambda: policy.decode(noise), count),
        **judged,
        "old copy, forward": (old, count),
        "guided anchor, forward": (anchor, count),
        "current, forward + backward": (train, count),
    }


def measure(
    policy: Policy, cond: Conditioning, *, steps: int, repeats: int, prompts: list[Prompt] | None = None
) -> list[dict[str, Any]]:
    """One row a phase."""
    rows = []
    for name, (work, images) in phases(policy, cond, steps, prompts).items():
        with FlopCounterMode(display=False) as counter:
            work()
        seconds = min(clock(work, policy.device) for _ in range(repeats))
        rows.append(
            {
                "phase": name,
                "images_per_second": images / seconds,
                "tflops": counter.get_total_flops() / seconds / 1e12,
            }
        )
    return rows


def matmul_tflops(device: str, dtype: torch.dtype, repeats: int) -> float:
    """The device's rate for a large square product, the honest ceiling of the column beside it."""
    size = 8192 if device.startswith("cuda") else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    torch.matmul(a, a)  # the first product also pays for start-up
    return 2 * size**3 / min(clock(lambda: a @ a, torch.device(device)) for _ in range(repeats)) / 1e12


def clock(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def main() -> None:
    """Measure both models and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--layers", type=int, help="SD3.5-medium's blocks; default: 24 on a GPU, 2 on a CPU")
    parser.add_argument("--images", type=int, help="images a call for SD3.5-medium; default: 8 or 1")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    gpu = args.device.startswith("cuda")
    layers, images = args.layers or (24 if gpu else 2), args.images or (8 if gpu else 1)
    tiny = load_policy(
        asset("tiny-sd3"),
        lora=LoraSpec(targets="all-linear"),
        dtype=args.dtype,
        vae_dtype="bf16" if args.dtype == "bf16" else "fp32",
        device=args.device,
        names=("old", "sampling"),
        fold_zero_tokens=True,
    )
    prompts = load_prompts("world:train")[:144]
    large = sd35_medium(layers, args.device, DTYPES[args.dtype])
    result = {
        "device": torch.cuda.get_device_name() if gpu else platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "matmul_tflops": matmul_tflops(args.device, DTYPES[args.dtype], args.repeats),
        f"tiny-sd3, {len(prompts)} images a call": measure(
            tiny, tiny.encode([p.text for p in prompts]), steps=6, repeats=args.repeats, prompts=prompts
        ),
        f"SD3.5-medium at 512 px, {layers} of 24 blocks, {images} a call": measure(
            large, random_conditioning(large, images, 333), steps=10 if gpu else 1, repeats=args.repeats
        ),
    }
    show(result)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    facts = ("device", "torch", "threads", "dtype")
    console.print(", ".join(f"{key} {result[key]}" for key in facts))
    console.print(f"large matrix product: {result['matmul_tflops']:.3g} TFLOP/s")
    for title, rows in result.items():
        if isinstance(rows, list):
            table = Table("phase", "images/s", "TFLOP/s", title=title)
            for row in rows:
                table.add_row(row["phase"], f"{row['images_per_second']:.4g}", f"{row['tflops']:.3g}")
            console.print(table)


if __name__ == "__main__":
    main()
