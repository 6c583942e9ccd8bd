"""How well a new discriminator, trained alike on each, tells the images of policies from the references of a recipe.

    python scripts/fresh_discriminator.py RUN/lora OTHER/lora
    python scripts/fresh_discriminator.py RUN/lora --set rewards.like.args.conditional=false

A discriminator that learns beside a policy is measured while both move. This one starts from nothing for the base model
and for every LoRA given, learns from as many rounds of their images, and is measured on images it has not seen: 0.5
says that nothing tells the two sides apart. The last row is what a perfect policy would get: other rendered pictures
of the same prompts, through the autoencoder. Some references are learned by heart, so even those are told apart a
little. The discriminator, prompts and steps are those of `tiny-sd3/adv-grpo`, with what `--set` changes of it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imgrl.cli.models import load_for_sampling
from imgrl.config import resolve
from imgrl.data.prompts import load_prompts
from imgrl.data.sampler import GroupSampler
from imgrl.policies import Policy
from imgrl.recipe import Recipe
from imgrl.rewards.learning import Alone
from imgrl.rewards.resolve import make
from imgrl.types import Prompt
from imgrl.world.styles import style_picture

LAST = 5  # rounds that are averaged


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lora", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for imgrl train")
    args = parser.parse_args()
    recipe = resolve("tiny-sd3/adv-grpo", args.set)
    print("| policy | accuracy on new images | margin |\n|---|---|---|")
    for name in ("base model", *args.lora, "rendered pictures"):
        policy = load_for_sampling(recipe.model, name if isinstance(name, Path) else None, device=None)
        drawn = partial(rendered, policy) if name == "rendered pictures" else partial(sampled, policy, recipe)
        told = learned(recipe, policy, drawn, rounds=args.rounds, seed=args.seed)[-LAST:]
        accuracy, margin = (statistics.fmean(row[key] for row in told) for key in ("accuracy", "margin"))
        print(f"| {name} | {accuracy:.3f} | {margin:.2f} |", flush=True)


def sampled(policy: Policy, recipe: Recipe, prompts: Sequence[Prompt], first: int) -> Tensor:
    """Images [n, 3, H, W] of a policy, the noise of each from ``first`` on."""
    texts, seeds = [prompt.text for prompt in prompts], list(range(first, first + len(prompts)))
    latents = policy.sample(policy.encode(texts), seeds, steps=recipe.rollout.steps, weights="current")
    return policy.decode(latents).cpu()


def rendered(policy: Policy, prompts: Sequence[Prompt], first: int) -> Tensor:
    """Pictures that show their prompts, as the policy's autoencoder draws them."""
    pictures = [
        style_picture("plain", prompt.columns, np.random.default_rng([first, row]))
        for row, prompt in enumerate(prompts)
    ]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    return policy.decode(policy.to_latents(images)).cpu()


def learned(
    recipe: Recipe,
    policy: Policy,
    drawn: Callable[[Sequence[Prompt], int], Tensor],
    *,
    rounds: int,
    seed: int,
) -> list[dict[str, float]]:
    """What a new discriminator said of each round of images before it learned from them."""
    spec: Any = recipe.rewards["like"]
    schedule = {**spec.args["schedule"], "warmup": rounds}  # it learns from every round
    reward = make(spec.use, {**spec.args, "schedule": schedule, "seed": seed})
    reward.prepare(
        height=policy.default_size,
        width=policy.default_size,
        round_trip=lambda images: policy.decode(policy.to_latents(images)).cpu(),
    )
    prompts, size = load_prompts(recipe.data.prompts), recipe.batch.group_size
    keys = [prompt.columns[str(recipe.data.balance)] for prompt in prompts]
    sampler = GroupSampler(len(prompts), recipe.batch.groups, seed, balance=keys)
    told = []
    for round in range(rounds):
        asked = [prompts[row] for row in sampler.next_round() for _ in range(size)]
        images = drawn(asked, seed + len(asked) * round)
        told.append(reward.learn(images, [prompt.text for prompt in asked], peers=Alone()))
    return told


if __name__ == "__main__":
    main()
