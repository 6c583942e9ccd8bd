"""Reading a recipe: strict, with every error naming the key, the file line and what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imgrl.config.build import build
from imgrl.config.kinds import refuse_other_kind
from imgrl.config.overrides import apply_overrides
from imgrl.config.rewards import named_rewards
from imgrl.config.tree import parse_file
from imgrl.recipe import Recipe, as_dict, config_hash, dump
from imgrl.resources import recipe_path
from imgrl.training.geometry import check_batch

__all__ = ["DEFAULT_RECIPE", "Recipe", "as_dict", "check_batch", "config_hash", "dump", "resolve"]

DEFAULT_RECIPE = "tiny-sd3/crd"


def resolve(recipe: str | Path | None = None, overrides: Sequence[str] = (), *, processes: int = 1) -> Recipe:
    """Read a recipe, apply dotted overrides and check that the result can run.

    Args:
        recipe: a YAML file, or the name of a bundled recipe; None takes the default, ``tiny-sd3/crd``.
        overrides: ``key.path=value`` pairs, the value in YAML, such as ``objective.beta=0.5``.
        processes: how many processes will share the batch.

    Raises:
        ConfigError: in one sentence, for anything that cannot run exactly as written. No number is adjusted.
    """
    name = DEFAULT_RECIPE if recipe is None else recipe
    tree = parse_file(recipe_path(name))
    refuse_other_kind(tree, Recipe, str(name))
    resolved = build(Recipe, named_rewards(apply_overrides(tree, overrides)))
    check_batch(resolved, processes=processes)
    return resolved
