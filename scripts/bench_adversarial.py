"""Images per second by phase of one Adv-GRPO round at SD3.5-medium's size with a discriminator over DINOv2-B at 518 px.

    python scripts/bench_adversarial.py                       # here: CPU, 2 of 24 blocks, 128 px
    python scripts/bench_adversarial.py --device cuda --json assets/benchmarks/adversarial-gpu.json

Real configurations, random weights. Every phase runs the code that a training round runs, in its order: rollout with
two random steps, decoding, features of the images, the discriminator's steps on them, and the clipped policy gradient
of both random steps. Rates are those of the best of ``--repeats`` rounds after a warm-up round.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import DTYPES, clock, random_conditioning, sd35_medium
from PIL import Image

import imgrl  # noqa: F401
from imgrl.flow import StochasticSampler
from imgrl.objectives.image import GRPO, Batch
from imgrl.policies import Policy
from imgrl.rewards.adversarial import Adversarial
from imgrl.rewards.learning import Alone
from imgrl.types import Transition

SAMPLER = StochasticSampler(kind="cps", window=2)
STEPS = 10


def dinov2(folder: Path, blocks: int) -> Path:
    """DINOv2-B/14 at 518 px with random weights, saved as timm saves."""
    import timm
    from timm.models._hub import save_for_hf

    sizes: dict[str, Any] = {"img_size": 518, "depth": blocks}
    network = timm.create_model("vit_base_patch14_dinov2", pretrained=False, num_classes=0, **sizes)
    save_for_hf(network, str(folder / "dinov2"), model_args=sizes, safe_serialization=True)
    return folder / "dinov2"


def discriminator(policy: Policy, folder: Path, references: int, pixels: int, blocks: int) -> Adversarial:
    """Adv-GRPO's reward on random references, which take the way through the policy's autoencoder."""
    pictures = folder / "references"
    pictures.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(references):
        noise = torch.randint(0, 256, (pixels, pixels, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(pictures / f"{number}.png")
    reward = Adversarial(
        references=str(pictures), backbone=str(dinov2(folder, blocks)), schedule={"steps": 8}
    )

    def round_trip(images: torch.Tensor) -> torch.Tensor:
        return policy.decode(policy.to_latents(images, batch=1), batch=1)

    reward.prepare(height=pixels, width=pixels, round_trip=round_trip)
    return reward


class Round:
    """One round, phase by phase; each uses what the one before left."""

    def __init__(self, policy: Policy, reward: Adversarial, *, images: int, batch: int, pixels: int) -> None:
        self.policy, self.reward, self.count, self.batch, self.pixels = policy, reward, images, batch, pixels
        self.cond = random_conditioning(policy, batch, 333)
        self.objective = GRPO(sampler=SAMPLER, clip=1e-5)
        self.number = 0

    def phases(self) -> dict[str, Callable[[], Any]]:
        """Name -> work on all images of the round."""
        return {
            f"rollout ({STEPS} steps, 2 random)": self.rollout,
            "decode": self.decode,
            "features of the images (DINOv2-B, 518 px)": self.score,
            "discriminator, 8 steps": self.learn,
            "policy, forward + backward (2 steps)": self.train,
        }

    def rollout(self) -> None:
        self.number += 1
        slices = range(0, self.count, self.batch)
        self.paths = [
            self.policy.sample_path(
                self.cond,
                range(i, i + self.batch),
                sampler=SAMPLER,
                steps=STEPS,
                start=self.number % 3,
                height=self.pixels,
                width=self.pixels,
            )
            for i in slices
        ]

    def decode(self) -> None:
        self.images = torch.cat([self.policy.decode(path.clean, batch=1) for path in self.paths])

    def score(self) -> None:
        self.scores = self.reward(self.images, [""] * self.count)

    def learn(self) -> None:
        self.reward.learn(self.images, [""] * self.count, peers=Alone())

    def train(self) -> None:
        device = self.policy.device
        advantage = ((self.scores - self.scores.mean()) / (self.scores.std() + 1e-4)).to(device)
        for number, path in enumerate(self.paths):
            rows = slice(number * self.batch, (number + 1) * self.batch)
            for level in range(2):
                point = Transition(
                    state=path.states[level],
                    after=path.states[level + 1],
                    log_prob=path.log_prob[level],
                    mean=None,
                    sigmas=path.sigmas,
                    index=path.start + level,
                )
                self.step(point, advantage[rows])

    def step(self, point: Transition, advantage: torch.Tensor) -> None:
        sigma = point.sigmas[point.index].expand(self.batch).to(self.policy.device)
        batch = Batch(
            current=self.policy.velocity(point.state, sigma, self.cond),
            transition=point,
            advantage=advantage,
            raw=advantage,
            group=torch.zeros(self.batch, dtype=torch.int64, device=self.policy.device),
        )
        self.objective.loss(batch).loss.mean().backward()


def peak_memory(device: torch.device) -> float:
    """GiB that the process, or the device, held at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--layers", type=int, help="SD3.5-medium's blocks; default: 24 on a GPU, 2 on a CPU")
    parser.add_argument("--dino-blocks", type=int, default=12)
    parser.add_argument("--images", type=int, help="images of the round; default: 64 or 2")
    parser.add_argument("--batch", type=int, help="images a forward pass; default: 8 or 2")
    parser.add_argument("--pixels", type=int, help="side of an image; default: 512 or 128")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    gpu = args.device.startswith("cuda")
    layers, images, batch = args.layers or (24 if gpu else 2), args.images or (64 if gpu else 2), args.batch
    batch = batch or (8 if gpu else 2)
    pixels = args.pixels or (512 if gpu else 128)
    if images % batch:
        raise SystemExit(f"--images must be a multiple of --batch, got {images} and {batch}.")
    policy = sd35_medium(layers, args.device, DTYPES[args.dtype])
    with tempfile.TemporaryDirectory() as folder:
        reward = discriminator(policy, Path(folder), max(images, 8), pixels, args.dino_blocks)
        work = Round(policy, reward, images=images, batch=batch, pixels=pixels).phases()
        times: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(args.repeats + 1):
            for name, phase in work.items():
                times[name].append(clock(phase, policy.device))
    best = {name: min(seconds[1:]) for name, seconds in times.items()}
    result = {
        "device": torch.cuda.get_device_name() if gpu else platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "setting": f"{layers} of 24 blocks, {args.dino_blocks} of DINOv2's 12, {images} images of {pixels} px, "
        f"{batch} a pass, {args.dtype}",
        "images_per_second": {name: images / seconds for name, seconds in best.items()},
        "round_images_per_second": images / sum(best.values()),
        "peak_gib": peak_memory(policy.device),
    }
    show(result)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("phase", "images/s", title=result["setting"])
    for name, rate in result["images_per_second"].items():
        table.add_row(name, f"{rate:.4g}")
    table.add_row("whole round", f"{result['round_images_per_second']:.4g}")
    Console().print(
        f"{result['device']}, torch {result['torch']}", table, f"peak {result['peak_gib']:.3g} GiB"
    )


if __name__ == "__main__":
    main()
