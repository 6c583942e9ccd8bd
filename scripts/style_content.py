"""Whether a customised model still draws what prompts ask for: a judge of content for each style of the embedded world.

    python scripts/style_content.py outlined=RUN/lora pastel=OTHER/lora

The rule-based detector knows plain pictures only, so each style has a judge of its own: a linear classifier, on frozen
features of a 4 x 4 grid, of which of 48 held-out prompts a picture shows, fitted on pictures that the world renders in
that style for these prompts. A model's images are right where it names their own prompt. Rendered pictures that the
judge has not seen are the ceiling; one in 48 is the floor. The base model is judged as plain. All pictures pass through
the model's autoencoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imgrl.cli.models import load_for_sampling
from imgrl.config import resolve
from imgrl.data.prompts import load_prompts
from imgrl.policies import Policy
from imgrl.rewards.features import load_extractor
from imgrl.types import Prompt
from imgrl.world.styles import style_picture

PROMPTS, RENDERED, KEPT_BACK = 48, 40, 8
IMAGES, STEPS, GUIDANCE = 4, 20, 3.0  # as `imgrl style` measures
FIT_STEPS, DECAY = 300, 1e-2


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("styles", nargs="*", metavar="STYLE=LORA")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    every = load_prompts("world:heldout")
    prompts = every[:: len(every) // PROMPTS][:PROMPTS]
    judged = [("base model", "plain", None), *(one(given) for given in args.styles)]
    print("| model | style | shows its prompt | rendered pictures (ceiling) |\n|---|---|---|---|")
    for name, style, lora in judged:
        policy = load_for_sampling(resolve("tiny-sd3/style").model, lora, device=None)
        judge = Judge(policy, prompts, style, seed=args.seed)
        weights = "frozen" if lora is None else "current"
        texts = [prompt.text for prompt in prompts for _ in range(IMAGES)]
        seeds = range(args.seed, args.seed + len(texts))
        latents = policy.sample(
            policy.encode(texts), list(seeds), steps=STEPS, guidance=GUIDANCE, weights=weights
        )
        share = judge.right(policy.decode(latents).cpu(), IMAGES)
        print(f"| {name} | {style} | {share:.3f} | {judge.ceiling:.3f} |", flush=True)


def one(given: str) -> tuple[str, str, Path]:
    """A command line's ``style=folder``."""
    style, _, folder = given.partition("=")
    return folder, style, Path(folder)


class Judge:
    """Names the prompt that a picture in one style shows."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], style: str, *, seed: int) -> None:
        self.see, rng = load_extractor(), np.random.default_rng(seed)
        count = RENDERED + KEPT_BACK
        rendered = np.stack([style_picture(style, p.columns, rng) for p in prompts for _ in range(count)])
        pixels = torch.from_numpy(rendered).permute(0, 3, 1, 2)
        passed = [policy.decode(policy.to_latents(part / 255)).cpu() for part in pixels.float().split(64)]
        features = self.features(torch.cat(passed)).unflatten(0, (len(prompts), count))
        self.mean, self.std = features.mean((0, 1)), features.std((0, 1)) + 1e-3
        torch.manual_seed(seed)
        self.linear = torch.nn.Linear(features.shape[-1], len(prompts))
        self.fit(features[:, :RENDERED].flatten(0, 1), RENDERED)
        self.ceiling = self.share(features[:, RENDERED:].flatten(0, 1), KEPT_BACK)

    def features(self, images: Tensor) -> Tensor:
        """Patch features on a 4 x 4 grid, side by side: where things are counts."""
        patches = self.see(images).patches.cpu()
        side = int(patches.shape[1] ** 0.5)
        grid = patches.transpose(1, 2).unflatten(2, (side, side))
        return F.adaptive_avg_pool2d(grid, 4).flatten(1)

    def fit(self, features: Tensor, each: int) -> None:
        """Cross-entropy over prompts, each of which has ``each`` rows."""
        x, y = self.standard(features), torch.arange(len(features)) // each
        optimizer = torch.optim.AdamW(self.linear.parameters(), lr=1e-3, weight_decay=DECAY)
        for _ in range(FIT_STEPS):
            optimizer.zero_grad()
            F.cross_entropy(self.linear(x), y).backward()
            optimizer.step()

    def standard(self, features: Tensor) -> Tensor:
        """In deviations of the rendered pictures."""
        return (features - self.mean) / self.std

    @torch.no_grad()
    def share(self, features: Tensor, each: int) -> float:
        """Share of rows whose own prompt is named."""
        named = self.linear(self.standard(features)).argmax(-1)
        return float((named == torch.arange(len(features)) // each).float().mean())

    def right(self, images: Tensor, each: int) -> float:
        """Share of images, ``each`` a prompt, whose own prompt is named."""
        return self.share(self.features(images), each)


if __name__ == "__main__":
    main()
