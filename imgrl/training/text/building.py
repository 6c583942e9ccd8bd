"""From a recipe and its model to the TRL trainer that runs it, with its data and rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgrl.data.texts import load_rows
from imgrl.errors import ConfigError
from imgrl.recipe_text import TextRecipe
from imgrl.training.text.models import is_adapter
from imgrl.training.text.reading import require_length, require_room, require_template

if TYPE_CHECKING:
    from imgrl.training.text.rewarding import TextReward

__all__ = ["Built", "build"]


@dataclass(frozen=True, kw_only=True)
class Built:
    """What trains."""

    trainer: Any
    rewards: Sequence[TextReward] = field(default_factory=list)
    """What scores the rollouts of an online run."""
    left_out: int = 0
    """Rows of data that are not trained on."""


def build(recipe: TextRecipe, folder: Path, *, model: Any, tokenizer: Any, teacher: Any = None) -> Built:
    """A trainer with everything it needs.

    Args:
        recipe: what to run.
        folder: of the run.
        model: to be trained.
        tokenizer: the model's.
        teacher: frozen, where the objective asks one.

    Raises:
        ImgrlError: if data, rewards or adapter do not fit the model.
    """
    from imgrl.training.text.arguments import peft_config

    with_lora = recipe.model.train == "lora"
    common: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "objective": recipe.objective,
        "scale": recipe.optimizer.scale,
        "rule": recipe.anchor,
        "mask": recipe.model.mask,
        "keep": recipe.checkpoint.keep,
        "peft_config": peft_config(recipe.model, model),
        # A LoRA on top of another would need both to be read.
        "merge": with_lora and (recipe.model.mask is not None or is_adapter(recipe.model.path)),
    }
    if recipe.objective.kind == "online":
        return _online(recipe, folder, common, teacher)
    return _from_data(recipe, folder, common)


def _online(recipe: TextRecipe, folder: Path, common: Mapping[str, Any], teacher: Any) -> Built:
    from datasets import Dataset

    from imgrl.training.text.arguments import online_arguments
    from imgrl.training.text.online import OnlineTrainer
    from imgrl.training.text.rewarding import build_rewards

    data, most = recipe.data, recipe.generation.max_tokens
    rows = load_rows(data.prompts, count=data.count, seed=recipe.run.seed, needs=("prompt",))
    rows = [{key: value for key, value in row.items() if key != "completion"} for row in rows]
    require_room(
        [row["prompt"] for row in rows],
        common["processing_class"],
        common["model"],
        more=most,
        key="generation.max_tokens",
        source=data.prompts,
    )
    rewards, weights = build_rewards(
        recipe.rewards,
        budget=recipe.failure_budget,
        columns=[key for key in rows[0] if key != "prompt"],
        group_size=recipe.batch.sampled,
    )
    if recipe.batch.votes is not None and not any(own.reward.groupwise for own in rewards):
        raise ConfigError(
            "batch.votes has no effect: none of the rewards judges a prompt's completions by one another, as vote "
            "does; leave it out, or raise batch.group_size"
        )
    trainer = OnlineTrainer(
        args=online_arguments(recipe, folder, weights=weights),
        train_dataset=Dataset.from_list(rows),
        reward_funcs=rewards,
        teacher=teacher,
        group_size=recipe.batch.group_size,
        **common,
    )
    return Built(trainer=trainer, rewards=rewards)


def _from_data(recipe: TextRecipe, folder: Path, common: Mapping[str, Any]) -> Built:
    """Demonstrations or preferences: nothing is generated while training."""
    from datasets import Dataset

    from imgrl.training.text.arguments import preference_arguments, supervised_arguments

    data, pairs = recipe.data, recipe.objective.kind == "preference"
    columns = ("prompt", "chosen", "rejected") if pairs else ("prompt", "completion")
    rows = load_rows(data.prompts, count=data.count, seed=recipe.run.seed, needs=columns)
    rows = [{column: row[column] for column in columns} for row in rows]
    tokenizer = common["processing_class"]
    require_template((value for row in rows for value in row.values()), tokenizer, data.prompts)
    require_length(rows, tokenizer, common["model"], most=data.max_tokens, source=data.prompts)
    if pairs:
        from imgrl.training.text.preference import PreferenceTrainer

        kind, args = PreferenceTrainer, preference_arguments(recipe, folder)
    else:
        from imgrl.training.text.supervised import SupervisedTrainer

        kind, args = SupervisedTrainer, supervised_arguments(recipe, folder)
    # TRL drops rows without a token to learn from, and would train on nothing.
    trainer: Any = kind(args=args, train_dataset=Dataset.from_list(rows), **common)
    left_out = len(rows) - len(trainer.train_dataset)
    if left_out == len(rows):
        raise ConfigError(
            f"data.max_tokens={data.max_tokens} is filled by the prompt alone in all {len(rows)} rows of "
            f"{data.prompts}, so there is nothing to learn from; raise it"
        )
    return Built(trainer=trainer, left_out=left_out)
