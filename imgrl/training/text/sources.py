"""Everything a language recipe names, found and fitting together before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imgrl.data.texts import load_rows
from imgrl.errors import ConfigError
from imgrl.recipe_text import TextRecipe
from imgrl.rewards.base import Reward
from imgrl.training import launch
from imgrl.training.text.checks import check_text
from imgrl.training.text.heldout import problems
from imgrl.training.text.models import place_of
from imgrl.training.text.rewarding import TextReward, build_rewards

__all__ = ["Sources", "check_sources"]

_COLUMNS = {"supervised": ("prompt", "completion"), "preference": ("prompt", "chosen", "rejected")}
"""What a kind of objective reads of a row; an online one the prompt, and what its rewards ask for."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a recipe names, read."""

    training: list[dict[str, Any]]
    """Rows with the columns that are read of them."""
    heldout: list[dict[str, Any]]
    verifier: Reward
    """What judges the held-out problems."""
    rewards: Sequence[TextReward] = ()
    """What scores rollouts; none where nothing is generated."""
    weights: Sequence[float] = ()
    """Of the rewards."""


def check_sources(recipe: TextRecipe, *, processes: int = 1) -> Sources:
    """Refuse a recipe that cannot run, as far as that shows without its model.

    Raises:
        ImgrlError: in one sentence.
    """
    check_text(recipe, processes=processes)
    if recipe.generation.vllm is not None:
        launch.refuse_missing_vllm()
    for model in (recipe.model.path, recipe.model.teacher):
        if model is not None:
            place_of(model)
    verifier, heldout = problems(recipe.evaluation)
    kind, data = recipe.objective.kind, recipe.data
    needs = _COLUMNS.get(kind, ("prompt",))
    rows = load_rows(data.prompts, count=data.count, seed=recipe.run.seed, needs=needs)
    if kind != "online":
        rows = [{column: row[column] for column in needs} for row in rows]
        return Sources(training=rows, heldout=heldout, verifier=verifier)
    rows = [{key: value for key, value in row.items() if key != "completion"} for row in rows]
    rewards, weights = _rewards(recipe, [key for key in rows[0] if key != "prompt"])
    return Sources(training=rows, heldout=heldout, verifier=verifier, rewards=rewards, weights=weights)


def _rewards(recipe: TextRecipe, columns: Sequence[str]) -> tuple[list[TextReward], list[float]]:
    rewards, weights = build_rewards(
        recipe.rewards, budget=recipe.failure_budget, columns=columns, group_size=recipe.batch.sampled
    )
    if recipe.batch.votes is not None and not any(own.reward.groupwise for own in rewards):
        raise ConfigError(
            "batch.votes has no effect: none of the rewards judges a prompt's completions by one another, as vote "
            "does; leave it out, or raise batch.group_size"
        )
    return rewards, weights
