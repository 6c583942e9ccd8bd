"""Reading a language recipe, as strictly as an image recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imgrl.config.build import build
from imgrl.config.kinds import refuse_other_kind
from imgrl.config.overrides import apply_overrides
from imgrl.config.rewards import named_rewards
from imgrl.config.tree import parse_file
from imgrl.recipe_text import TextRecipe
from imgrl.resources import recipe_path
from imgrl.training.text.checks import check_text

__all__ = ["DEFAULT_TEXT_RECIPE", "resolve_text"]

DEFAULT_TEXT_RECIPE = "tiny-lm/grpo"


def resolve_text(
    recipe: str | Path | None = None, overrides: Sequence[str] = (), *, processes: int = 1
) -> TextRecipe:
    """Read a language recipe, apply dotted overrides and check that the result can run.

    Raises:
        ConfigError: in one sentence, for anything that cannot run exactly as written.
    """
    name = DEFAULT_TEXT_RECIPE if recipe is None else recipe
    tree = parse_file(recipe_path(name))
    refuse_other_kind(tree, TextRecipe, str(name))
    resolved = build(TextRecipe, named_rewards(apply_overrides(tree, overrides)))
    check_text(resolved, processes=processes)
    return resolved
