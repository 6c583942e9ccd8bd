"""Refusals of language recipes that cannot run as written, asked before anything is loaded."""

from __future__ import annotations

from imgrl.anchor import Frozen, Snapshot
from imgrl.errors import ConfigError
from imgrl.objectives.text.base import BASE_NEEDS, passes_of
from imgrl.recipe_text import VLLM, TextRecipe

__all__ = ["check_text"]


def check_text(recipe: TextRecipe, *, processes: int = 1) -> None:
    """Refuse batches that do not divide and objectives without what they need.

    Raises:
        ConfigError: naming the keys.
    """
    batch, objective = recipe.batch, recipe.objective
    online = objective.kind == "online"
    if online and batch.group_size < 2:
        raise ConfigError(
            f"batch.group_size must be at least 2 for {objective.name}, which compares a prompt's completions, got "
            f"{batch.group_size}"
        )
    if not online and batch.group_size != 1:
        raise ConfigError(
            f"batch.group_size must be 1 for {objective.name}, which learns from data, got {batch.group_size}"
        )
    total = batch.groups * batch.group_size
    if total % processes:
        raise ConfigError(
            f"batch.groups x batch.group_size is {total}, which {processes} processes cannot share evenly"
        )
    if online and batch.groups % processes:
        raise ConfigError(
            f"batch.groups must be a multiple of the {processes} processes, each of which holds whole groups, got "
            f"{batch.groups}"
        )
    _check_votes(recipe)
    micro = batch.micro or total // processes
    if (total // processes) % micro:
        raise ConfigError(
            f"batch.micro must divide the {total // processes} sequences of each process, got {micro}"
        )
    _check_teacher(recipe)
    if objective.name == "adpo" and micro != total // processes:
        raise ConfigError(
            "batch.micro must be left out for adpo, which compares whole groups in one forward pass, got "
            f"{batch.micro}; lower batch.groups instead"
        )
    if recipe.model.train == "lora" and recipe.model.lora.seed != 0:
        raise ConfigError(
            "model.lora.seed has no effect here, the adapter starts from run.seed; leave it out"
        )
    if recipe.anchor != Frozen():
        _check_moving_anchor(recipe)
    _check_vllm(recipe.generation.vllm, online=online, processes=processes)
    passes = passes_of(objective)
    for key, every in (("checkpoint.every", recipe.checkpoint.every), ("run.steps", recipe.run.steps)):
        if every % passes:
            raise ConfigError(
                f"{key} must be a multiple of objective.passes ({passes}), so that a run stops between batches, got "
                f"{every}"
            )


def _check_teacher(recipe: TextRecipe) -> None:
    name, asked = recipe.objective.name, {"teacher", "target_kl"} & recipe.objective.needs
    if asked and recipe.model.teacher is None:
        raise ConfigError(f"{name} asks a teacher: set model.teacher to a model with the same tokenizer")
    if recipe.model.teacher is not None and not asked:
        raise ConfigError(f"model.teacher has no effect: {name} asks no teacher; leave it out")


def _check_votes(recipe: TextRecipe) -> None:
    batch, objective = recipe.batch, recipe.objective
    if batch.votes is None:
        return
    compares = objective.kind == "online" and (objective.name == "adpo" or "advantage" in objective.needs)
    if not compares or objective.name == "remix":
        raise ConfigError(
            f"batch.votes is for objectives that compare a prompt's fresh completions, not for {objective.name}; leave "
            "it out"
        )
    if batch.votes < batch.group_size:
        raise ConfigError(
            f"batch.votes must be at least batch.group_size ({batch.group_size}), the part of them that is trained on, "
            f"got {batch.votes}"
        )
    if batch.micro is not None and batch.micro % batch.group_size:
        raise ConfigError(
            f"batch.micro must be a multiple of batch.group_size ({batch.group_size}) with batch.votes, got "
            f"{batch.micro}"
        )


def _check_moving_anchor(recipe: TextRecipe) -> None:
    objective, rule, passes = recipe.objective, recipe.anchor, passes_of(recipe.objective)
    if not BASE_NEEDS & objective.needs:
        raise ConfigError(
            f"anchor has nothing to move for {objective.name} with these settings, which asks no base model; leave it "
            "out, or give the objective's anchor a weight"
        )
    if getattr(objective, "reincarnate_at", None) is not None:
        raise ConfigError(
            "anchor and objective.reincarnate_at both say when the base is renewed; leave one of them out"
        )
    if isinstance(rule, Snapshot) and rule.every % passes:
        raise ConfigError(
            f"anchor.every must be a multiple of objective.passes ({passes}), so that it rests while a batch is "
            f"learned from, got {rule.every}"
        )
    for step in range(1, recipe.run.steps + 1):
        if not 0 <= (decay := rule.decay(step)) <= 1:
            raise ConfigError(
                f"anchor.schedule must stay between 0 and 1, the share of the anchor that a step keeps, but is "
                f"{decay:g} at step {step}"
            )


def _check_vllm(settings: VLLM | None, *, online: bool, processes: int) -> None:
    if settings is None:
        return
    if not online:
        raise ConfigError("generation.vllm is for objectives that generate; leave it out of this one")
    if settings.mode == "colocate" and processes % (settings.tensor_parallel or 1):
        raise ConfigError(
            f"generation.vllm.tensor_parallel must divide the {processes} processes, got {settings.tensor_parallel}"
        )
