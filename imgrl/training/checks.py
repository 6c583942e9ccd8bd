"""Everything about a recipe that can be known before a weight is loaded; `imgrl check` and training share it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgrl.data.prompts import load_prompts
from imgrl.data.sampler import GroupSampler
from imgrl.errors import CheckpointError, ConfigError, RewardError
from imgrl.recipe import Recipe, config_hash
from imgrl.resources import model_path
from imgrl.rewards import RewardSet
from imgrl.rewards.base import column_names
from imgrl.training.checkpoint import latest_checkpoint, read_state
from imgrl.training.geometry import check_batch
from imgrl.training.imitation import load_captioned
from imgrl.training.lasting import require_same_settings
from imgrl.training.seeds import generator
from imgrl.types import Prompt

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = ["Checked", "check_model", "check_recipe", "check_resume"]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a recipe names, read and found to fit together."""

    prompts: list[Prompt]
    heldout: list[Prompt]
    sampler: GroupSampler
    rewards: RewardSet


def check_recipe(recipe: Recipe, *, processes: int = 1) -> Checked:
    """Refuse a recipe that cannot run, before anything expensive.

    A model that is not on this disk yet is only known by name; :func:`check_model` looks again once it is.

    Raises:
        ImgrlError: in one sentence.
    """
    check_batch(recipe, processes=processes)
    _check_trackers(recipe)
    prompts = load_prompts(recipe.data.prompts)
    heldout = _heldout(recipe, processes)
    sampler = _sampler(recipe, prompts)
    size = _size(recipe)
    scoring = recipe.scoring
    rewards = RewardSet.from_specs(recipe.rewards, failure_budget=scoring.failure_budget, cache=scoring.cache)
    _check_groups(rewards, recipe, processes)
    _check_rewards(rewards, recipe, prompts, heldout, size)
    if recipe.imitation.pictures is not None:
        load_captioned(recipe.imitation, height=size[0], width=size[1])
    return Checked(prompts=prompts, heldout=heldout, sampler=sampler, rewards=rewards)


def _size(recipe: Recipe) -> tuple[int, int]:
    """Height and width of the images to come; a guess while the model is only a name on a hub."""
    from imgrl.policies import local_folder

    folder = local_folder(model_path(recipe.model.path))
    if folder is None:
        return recipe.model.height or 512, recipe.model.width or 512
    return check_model(recipe, _blueprint(recipe, folder))


def check_model(recipe: Recipe, policy: Policy) -> tuple[int, int]:
    """Refuse an image size or step count that would only fail in the middle of the first round.

    Returns:
        Height and width of the images to come.
    """
    model, steps = recipe.model, recipe.rollout.steps
    policy.latent_shape(model.height, model.width)
    if recipe.objective.times is None:
        return model.height or policy.default_size, model.width or policy.default_size
    try:
        recipe.objective.times.draw(policy.sigmas(steps, model.height, model.width), generator(0))
    except ValueError as error:
        raise ConfigError(
            f"rollout.steps is {steps}, which does not suit objective.times: {error}"
        ) from error
    return model.height or policy.default_size, model.width or policy.default_size


def check_resume(run: Path, recipe: Recipe) -> None:
    """Refuse to continue a run that has no checkpoint, or has one of other settings.

    Raises:
        CheckpointError: naming the settings that differ.
    """
    folder = latest_checkpoint(run)
    if folder is None:
        raise CheckpointError(f"{run} holds no checkpoint to resume from: start the run without --resume.")
    if read_state(folder)["config_hash"] == config_hash(recipe):
        return
    require_same_settings(folder / "config.yaml", recipe, until="run.rounds")


def _blueprint(recipe: Recipe, folder: Path) -> Policy:
    """The model's shapes without its weights, after everything that can be refused by them."""
    from imgrl.policies import blueprint

    model = recipe.model
    return blueprint(
        folder,
        lora=model.lora if model.train == "lora" else None,
        max_sequence_length=model.max_sequence_length,
        distilled_guidance=model.distilled_guidance,
    )


def _check_trackers(recipe: Recipe) -> None:
    """Accelerate leaves out what it cannot import without a word."""
    for name in recipe.tracking.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracking.trackers names {name}, which is not installed here; run `pip install {name}`, "
                "or leave it out (metrics.jsonl is always written)"
            )


def _heldout(recipe: Recipe, processes: int) -> list[Prompt]:
    settings = recipe.evaluation
    heldout = load_prompts(settings.prompts)[: settings.limit]
    if len(heldout) < processes:
        raise ConfigError(
            f"an evaluation of {len(heldout)} prompts cannot be shared by {processes} processes; raise "
            "evaluation.limit or give more evaluation.prompts"
        )
    return heldout


def _sampler(recipe: Recipe, prompts: Sequence[Prompt]) -> GroupSampler:
    key = recipe.data.balance
    if recipe.batch.groups > len(prompts):
        raise ConfigError(
            f"batch.groups is {recipe.batch.groups}, but data.prompts has only {len(prompts)} prompts, and none may "
            "repeat within a round"
        )
    if key is not None:
        missing = next((p for p in prompts if key not in p.columns), None)
        if missing is not None:
            raise ConfigError(
                f"data.balance is {key!r}, but prompt {missing.text!r} has no such column: balance by a column that "
                "every prompt has, or leave it out."
            )
    shares = recipe.data.shares
    if shares and key is None:
        raise ConfigError("data.shares needs data.balance, the column whose values it names; add it.")
    balance = None if key is None else [str(prompt.columns[key]) for prompt in prompts]
    try:
        return GroupSampler(
            len(prompts), recipe.batch.groups, recipe.run.seed, balance=balance, shares=shares
        )
    except ValueError as error:
        what = "batch.groups, data.balance and data.shares do" if shares else "batch.groups does"
        raise ConfigError(f"{what} not fit data.prompts: {error}") from error


def _check_rewards(
    rewards: RewardSet,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    heldout: Sequence[Prompt],
    size: tuple[int, int],
) -> None:
    """Try every reward on both sets of prompts; the training set, last, fixes the columns."""
    _check_weights(rewards, recipe)
    height, width = size
    if column_names(heldout) != column_names(prompts):
        try:
            rewards.check(heldout, height=height, width=width)
        except RewardError as error:
            raise RewardError(f"evaluation.prompts do not suit the rewards: {error}") from error
    low, high = rewards.check(prompts, height=height, width=width, training=True)
    if recipe.objective.anchor.needs_unit_rewards and (low < -1e-6 or high > 1 + 1e-6):
        raise ConfigError(
            f"{_leash(recipe)}, but on two flat images the weighted rewards reach {low if low < 0 else high:.4g}: "
            "rescale them, or choose adaptive: advantage or none."
        )


def _check_weights(rewards: RewardSet, recipe: Recipe) -> None:
    """Weights that add up to more than 1 can lead out of [0, 1] even where each reward stays inside."""
    total = math.fsum(spec.weight for spec in rewards.specs.values())
    if recipe.objective.anchor.needs_unit_rewards and total > 1 + 1e-9:
        raise ConfigError(
            f"{_leash(recipe)}, but the weights add up to {total:g}: lower them to a sum of 1, or choose "
            "adaptive: advantage or none."
        )


def _check_groups(rewards: RewardSet, recipe: Recipe, processes: int) -> None:
    """A reward that compares a group needs all of it on one process, and in one part of the round."""
    step, size = recipe.rollout.batch, recipe.batch.group_size
    compares = next((name for name, reward in rewards.rewards.items() if reward.groupwise), None)
    here = recipe.batch.micro_groups * size // processes
    if compares and here % size:
        raise ConfigError(
            f"reward {compares!r} compares the images of a group, but of a micro-batch's {recipe.batch.micro_groups} "
            f"groups of {size} each of {processes} processes has {here} images: make batch.micro_groups a multiple of "
            f"{processes}."
        )
    if recipe.scoring.overlap and compares and step is not None and step % size:
        raise ConfigError(
            f"reward {compares!r} compares the images of a group, but scoring.overlap has rollout.batch ({step}) of "
            f"them scored at a time: make it a multiple of batch.group_size ({size}), or leave scoring.overlap out."
        )


def _leash(recipe: Recipe) -> str:
    return (
        f"objective.anchor.adaptive is {recipe.objective.anchor.adaptive!r}, which needs a combined reward within "
        "[0, 1]"
    )
