"""From a recipe, what it names and its model to the TRL trainer that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgrl.errors import ConfigError
from imgrl.recipe_text import TextRecipe
from imgrl.training.text.models import is_adapter
from imgrl.training.text.reading import require_length, require_room, require_template
from imgrl.training.text.sources import Sources

__all__ = ["build"]


def build(
    recipe: TextRecipe, found: Sources, folder: Path, *, model: Any, tokenizer: Any, teacher: Any = None
) -> Any:
    """A trainer with everything it needs.

    Args:
        recipe: what to run.
        found: what it names.
        folder: of the run.
        model: to be trained.
        tokenizer: the model's.
        teacher: frozen, where the objective asks one.

    Raises:
        ImgrlError: if data or adapter do not fit the model.
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
        return _online(recipe, found, folder, common, teacher)
    return _from_data(recipe, found, folder, common)


def _online(recipe: TextRecipe, found: Sources, folder: Path, common: Mapping[str, Any], teacher: Any) -> Any:
    from datasets import Dataset

    from imgrl.training.text.arguments import online_arguments
    from imgrl.training.text.online import OnlineTrainer

    require_room(
        [row["prompt"] for row in found.training],
        common["processing_class"],
        common["model"],
        more=recipe.generation.max_tokens,
        key="generation.max_tokens",
        source=recipe.data.prompts,
    )
    return OnlineTrainer(
        args=online_arguments(recipe, folder, weights=list(found.weights)),
        train_dataset=Dataset.from_list(found.training),
        reward_funcs=list(found.rewards),
        teacher=teacher,
        group_size=recipe.batch.group_size,
        **common,
    )


def _from_data(recipe: TextRecipe, found: Sources, folder: Path, common: Mapping[str, Any]) -> Any:
    """Demonstrations or preferences: nothing is generated while training."""
    from datasets import Dataset

    from imgrl.training.text.arguments import preference_arguments, supervised_arguments

    data, rows, tokenizer = recipe.data, found.training, common["processing_class"]
    require_template((value for row in rows for value in row.values()), tokenizer, data.prompts)
    require_length(rows, tokenizer, common["model"], most=data.max_tokens, source=data.prompts)
    if recipe.objective.kind == "preference":
        from imgrl.training.text.preference import PreferenceTrainer

        kind, args = PreferenceTrainer, preference_arguments(recipe, folder)
    else:
        from imgrl.training.text.supervised import SupervisedTrainer

        kind, args = SupervisedTrainer, supervised_arguments(recipe, folder)
    # TRL drops rows without a token to learn from, and would train on nothing.
    trainer: Any = kind(args=args, train_dataset=Dataset.from_list(rows), **common)
    if not len(trainer.train_dataset):
        raise ConfigError(
            f"data.max_tokens={data.max_tokens} is filled by the prompt alone in all {len(rows)} rows of "
            f"{data.prompts}, so there is nothing to learn from; raise it"
        )
    return trainer
