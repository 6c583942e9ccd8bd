"""Everything a language recipe names, found and fitting together before a model is loaded; for `imgrl check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgrl.data.texts import load_rows
from imgrl.errors import ConfigError
from imgrl.recipe_text import TextRecipe
from imgrl.resources import asset
from imgrl.training import launch
from imgrl.training.text.checks import check_text
from imgrl.training.text.heldout import problems
from imgrl.training.text.rewarding import TextReward, build_rewards

__all__ = ["Sources", "check_sources"]

_COLUMNS = {
    "online": ("prompt",),
    "supervised": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
}
"""What a kind of objective reads of a row."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a recipe names, read."""

    training: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    rewards: list[TextReward]
    """None where nothing is generated."""


def check_sources(recipe: TextRecipe, *, processes: int = 1) -> Sources:
    """Refuse a recipe that cannot run, as far as that shows without its model.

    Raises:
        ImgrlError: in one sentence.
    """
    check_text(recipe, processes=processes)
    if recipe.generation.vllm is not None:
        launch.refuse_missing_vllm()
    for model in (recipe.model.path, recipe.model.teacher):
        if model is not None and "/" not in model and not Path(model).is_dir():
            asset(model)  # names a bundled one, or nothing
    _, heldout = problems(recipe.evaluation)
    kind, data = recipe.objective.kind, recipe.data
    rows = load_rows(data.prompts, count=data.count, seed=recipe.run.seed, needs=_COLUMNS[kind])
    rewards = _rewards(recipe, list(rows[0])) if kind == "online" else []
    return Sources(training=rows, heldout=heldout, rewards=rewards)


def _rewards(recipe: TextRecipe, columns: Sequence[str]) -> list[TextReward]:
    rewards, _ = build_rewards(
        recipe.rewards,
        budget=recipe.failure_budget,
        columns=[name for name in columns if name not in ("prompt", "completion")],
        group_size=recipe.batch.sampled,
    )
    if recipe.batch.votes is not None and not any(own.reward.groupwise for own in rewards):
        raise ConfigError(
            "batch.votes has no effect: none of the rewards judges a prompt's completions by one another, as vote "
            "does; leave it out, or raise batch.group_size"
        )
    return rewards
