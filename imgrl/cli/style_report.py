"""What ``imgrl style`` tells of a finished run: figures by strength of the LoRA, and what they can and cannot say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from imgrl.recipe import Recipe
    from imgrl.types import Prompt

__all__ = ["measured", "print_report"]

_MOST_PROMPTS = 24


def measured(recipe: Recipe, run: Path, *, reward: str, features: str | None) -> dict[str, Any]:
    """Figures of the finished run, written to style/style.json.

    Args:
        recipe: of the run.
        run: its folder.
        reward: name of the reward that learned.
        features: network to measure with; None is the one whose weights come with a package.
    """
    from imgrl.cli.models import load_for_sampling
    from imgrl.data import load_prompts
    from imgrl.evaluation.customisation import Sides, measure_style
    from imgrl.evaluation.protocol import Protocol
    from imgrl.evaluation.style import caveats
    from imgrl.rewards.features import DEFAULT_BACKBONE, load_extractor
    from imgrl.rewards.references import load_references
    from imgrl.training.run_folder import write_json

    policy = load_for_sampling(recipe.model, run / "lora", device=None)
    height = recipe.model.height or policy.default_size
    width = recipe.model.width or policy.default_size
    train, heldout = (
        load_references(next((run / "style").glob(f"references-{side}.*")), height=height, width=width).images
        for side in ("train", "heldout")
    )
    every = load_prompts(recipe.evaluation.prompts)
    prompts = every[:: max(1, len(every) // _MOST_PROMPTS)][:_MOST_PROMPTS]
    settings = recipe.evaluation
    protocol = Protocol(
        images_per_prompt=4,
        steps=max(settings.steps),
        guidance=settings.guidance,
        solver=settings.solver,
        seed=settings.seed,
        batch=settings.batch or 16,
        height=recipe.model.height,
        width=recipe.model.width,
    )
    extractor = load_extractor(features or DEFAULT_BACKBONE)
    figures = measure_style(
        policy,
        prompts,
        Sides(train=train, heldout=heldout),
        protocol=protocol,
        see=lambda images: tuple(part.cpu() for part in extractor(images)),  # pyright: ignore
        picture=run / "style" / "before-after.png",
        agree=_agreement(recipe, reward),
    )
    report = {
        "strength": figures,
        "prompts": len(prompts),
        "images": len(prompts) * protocol.images_per_prompt,
        "steps": protocol.steps,
        "features": extractor.name,
        "notes": caveats(extractor.name, of_reward=_features_of(recipe, reward)),
        "references": {"train": len(train), "heldout": len(heldout)},
        "picture": str(run / "style" / "before-after.png"),
        "lora": str(run / "lora"),
    }
    write_json(run / "style" / "style.json", report)
    return report


def _agreement(
    recipe: Recipe, learning: str
) -> Callable[[Tensor, Sequence[Prompt]], dict[str, float]] | None:
    """Means of the recipe's rewards that do not learn, by name; None where it has no other."""
    from imgrl.rewards import RewardSet
    from imgrl.rewards.spec import read_spec

    others = {
        name: replace(read_spec(name, given), weight=1.0, heldout_only=False)
        for name, given in recipe.rewards.items()
        if name != learning
    }
    if not others:
        return None
    rewards = RewardSet(others, failure_budget=recipe.scoring.failure_budget, cache=recipe.scoring.cache)

    def means(images: Tensor, prompts: Sequence[Prompt]) -> dict[str, float]:
        values = rewards.score(images, prompts).values
        return {
            f"reward/{name}": float(found.nanmean())
            for name, found in values.items()
            if not found.isnan().all()
        }

    return means


def _features_of(recipe: Recipe, reward: str) -> str:
    from imgrl.rewards.features import DEFAULT_BACKBONE

    spec = recipe.rewards[reward]
    return getattr(spec, "args", {}).get("backbone", DEFAULT_BACKBONE)


def print_report(report: dict[str, Any]) -> None:
    """The figures as a table, and what they cannot tell."""
    from rich.table import Table

    from imgrl.cli.common import screen

    columns = list(next(iter(report["strength"].values())))
    table = Table(title=f"style by strength of the LoRA, {report['images']} images", title_justify="left")
    for column in ("strength", *columns):
        table.add_column(column, justify="right")
    for strength, figures in report["strength"].items():
        table.add_row(strength, *(f"{figures[column]:.3f}" for column in columns))
    screen().print(table)
    for note in (*report["notes"], report["picture"], report["lora"]):
        typer.echo(note)
