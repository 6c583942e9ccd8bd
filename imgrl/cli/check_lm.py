"""``imgrl check`` of a language recipe: all that can be known before its model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from imgrl.cli.common import print_json, screen
from imgrl.cli.lm import require_trl

if TYPE_CHECKING:
    from imgrl.recipe_text import TextRecipe

__all__ = ["check_text_recipe"]

_ROWS = {"online": "prompts", "supervised": "sequences", "preference": "pairs"}


def check_text_recipe(
    name: str, overrides: Sequence[str], *, processes: int, show: bool, as_json: bool
) -> None:
    """Resolve it, do its arithmetic, find its data and rewards, and say so.

    Args:
        name: of the recipe.
        overrides: of its keys.
        processes: that will share the batch.
        show: print the resolved recipe too.
        as_json: print JSON instead of words.

    Raises:
        ImgrlError: in one sentence, for what `imgrl lm train` would refuse before it loads the model.
    """
    require_trl("imgrl check, for a language recipe,")
    import yaml

    from imgrl.config.text import resolve_text
    from imgrl.recipe import as_dict
    from imgrl.training.text.quiet import hush
    from imgrl.training.text.sources import check_sources

    hush()
    recipe = resolve_text(name, overrides, processes=processes)
    found = check_sources(recipe, processes=processes)
    report = {
        "batch": _batch(recipe, processes),
        "prompts": {
            "training": len(found.training),
            "held_out": len(found.heldout),
            "rewards": [own.reward.name for own in found.rewards],
        },
    }
    if as_json:
        print_json({**report, "recipe": as_dict(recipe)})
        return
    if show:
        typer.echo(yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True))
    _print(report, recipe)


def _batch(recipe: TextRecipe, processes: int) -> dict[str, Any]:
    batch, online = recipe.batch, recipe.objective.kind == "online"
    here = batch.groups * batch.group_size // processes
    made = {"completions_per_step": batch.groups * batch.sampled} if online else {}
    return {
        f"{_ROWS[recipe.objective.kind]}_per_step": batch.groups,
        **made,
        "rows_per_forward": batch.micro or here,
        "steps_in_all": recipe.run.steps,
    }


def _print(report: dict[str, Any], recipe: TextRecipe) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    table.add_row("model", Text(f"{recipe.model.path}, {recipe.model.train}, {recipe.model.dtype}"))
    table.add_row("objective", recipe.objective.name)
    for section in ("prompts", "batch"):
        for key, value in report[section].items():
            shown = ", ".join(value) or "none" if isinstance(value, list) else str(value)
            table.add_row(key.replace("_", " "), Text(shown))
    screen().print(table)
    screen().print("the recipe can run if the model is what it expects; it was not opened")
