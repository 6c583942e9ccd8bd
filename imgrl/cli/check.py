"""``imgrl check``: everything about a recipe that can be known without training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgrl.cli.common import Arguments, AsJson, print_json, screen, split_arguments

if TYPE_CHECKING:
    from imgrl.recipe import Recipe

__all__ = ["check"]

_GIB = 2**30


def check(
    arguments: Arguments = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that will share the batch.")] = 1,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved recipe too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Resolve a recipe, do its arithmetic, estimate memory, check prompts and rewards, and stop.

    A recipe for language models is told by its keys; of it, memory is not estimated.
    """
    from imgrl.config import as_dict, dump, resolve
    from imgrl.config.kinds import is_for_texts
    from imgrl.config.tree import parse_file
    from imgrl.resources import recipe_path
    from imgrl.training.checks import check_recipe

    name, overrides = split_arguments(arguments)
    if name is not None and is_for_texts(parse_file(recipe_path(name))):
        from imgrl.cli.check_lm import check_text_recipe

        check_text_recipe(name, overrides, processes=processes, show=show, as_json=as_json)
        return
    recipe = resolve(name, overrides, processes=processes)
    checked = check_recipe(recipe, processes=processes)
    report = {
        "batch": _batch(recipe, processes),
        "prompts": {
            "training": len(checked.prompts),
            "held_out": len(checked.heldout),
            "rewards": list(recipe.rewards),
        },
        "memory": _memory(recipe, processes, references=checked.rewards.learners.reference_bytes),
    }
    if as_json:
        print_json({**report, "recipe": as_dict(recipe)})
        return
    if show:
        typer.echo(dump(recipe))
    _print(report, recipe)


def _batch(recipe: Recipe, processes: int) -> dict[str, Any]:
    from imgrl.training.geometry import levels

    batch = recipe.batch
    images = batch.images
    return {
        "images_per_round": images,
        "images_per_process": images // processes,
        "rows_per_forward": batch.micro_groups * batch.group_size // processes,
        "noise_levels_per_image": levels(recipe),
        "updates_per_round": batch.updates_per_round,
        "updates_in_all": batch.updates_per_round * recipe.run.rounds,
        "network_evaluations_in_rollout": images * recipe.rollout.steps,
    }


def _memory(recipe: Recipe, processes: int, *, references: int) -> dict[str, Any]:
    from imgrl.cli.memory import estimate
    from imgrl.resources import model_path

    folder, seen = model_path(recipe.model.path), {"references": references} if references else {}
    if not isinstance(folder, Path):
        return {
            "unknown": f"{folder} is a name on a hub, not on this disk, so its parameters were not counted",
            **seen,
        }
    found = estimate(recipe, folder, processes=processes)
    return {**asdict(found), "training": found.training, **seen}


def _print(report: dict[str, Any], recipe: Recipe) -> None:
    from rich.table import Table

    table = Table(show_header=False)
    table.add_row("model", f"{recipe.model.path}, {recipe.model.train}, {recipe.model.dtype}")
    table.add_row("objective", recipe.objective.name)
    for section in ("prompts", "batch"):
        for key, value in report[section].items():
            table.add_row(key.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
    for key, value in report["memory"].items():
        label = {
            "activations": "memory: activations, roughly",
            "encoders": "memory: encoders, at first",
            "references": "main memory: features of references",
        }.get(key)
        shown = value if isinstance(value, str) else f"{value / _GIB:.2f} GiB"
        table.add_row(label or f"memory: {key}", shown)
    screen().print(table)
    known = "unknown" not in report["memory"]
    screen().print("the recipe can run" if known else "the recipe can run if the model is what it expects")
