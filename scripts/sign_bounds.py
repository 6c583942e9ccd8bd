"""What the OCR judge of `tiny-sd3/ocr` gives to signs that are right, and to those that are not.

    python scripts/sign_bounds.py

Renders every sign that the recipe is judged by four times, and judges the pictures as drawn, after the bundled
autoencoder (the ceiling of any policy), and by the next prompt's text (the floor); beside them noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imgrl.cli.models import load_for_sampling, sampling_settings
from imgrl.config import resolve
from imgrl.data.prompts import load_prompts
from imgrl.rewards import RewardSet
from imgrl.world.render import render

COPIES = 4


def main() -> None:
    """Print a table of mean scores."""
    recipe = resolve("tiny-sd3/ocr")
    rewards = RewardSet.from_specs(recipe.rewards)
    prompts = [prompt for prompt in load_prompts(recipe.evaluation.prompts) for _ in range(COPIES)]
    rng = np.random.default_rng(0)
    drawn = torch.stack([picture(prompt.columns, rng) for prompt in prompts])
    policy = load_for_sampling(sampling_settings("tiny-sd3", None, dtype="fp32"), None, device=None)
    others = prompts[COPIES:] + prompts[:COPIES]
    noise = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(0))
    sets = {
        "rendered signs": (drawn, prompts),
        "rendered signs after the autoencoder": (policy.decode(policy.to_latents(drawn)).float(), prompts),
        "rendered signs of another prompt": (drawn, others),
        "noise": (noise, prompts),
    }
    print(f"| {len(prompts)} images | {' | '.join(rewards.specs)} |")
    print(f"|---|{'---|' * len(rewards.specs)}")
    for name, (images, wanted) in sets.items():
        values = rewards.score(images.clamp(0, 1), wanted).values
        print(f"| {name} | {' | '.join(f'{float(values[key].mean()):.3f}' for key in values)} |")


def picture(metadata: Mapping[str, Any], rng: np.random.Generator) -> Tensor:
    """A rendered sign [3, h, w] in [0, 1]."""
    return torch.from_numpy(render(metadata, rng).copy()).permute(2, 0, 1).float() / 255


if __name__ == "__main__":
    main()
