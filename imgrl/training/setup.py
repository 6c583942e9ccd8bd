"""From a recipe to everything a run needs, cheap checks first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgrl.data.prompts import load_prompts
from imgrl.data.sampler import GroupSampler
from imgrl.errors import CheckpointError, ConfigError, RewardError
from imgrl.recipe import Recipe, dump
from imgrl.resources import model_path
from imgrl.rewards import RewardSet
from imgrl.rewards.base import column_names
from imgrl.training.checkpoint import latest_checkpoint
from imgrl.training.distributed import World
from imgrl.training.geometry import check_batch
from imgrl.training.run_folder import holds_results, open_folder, write_json
from imgrl.training.seeds import generator
from imgrl.training.tracking import environment
from imgrl.training.update import Updater
from imgrl.types import Prompt

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = ["Parts", "prepare"]

_ENCODE_AHEAD = (
    2000  # up to this many prompts are embedded before training, so that the encoders can be freed
)


@dataclass(kw_only=True)
class Parts:
    """What a run is made of."""

    recipe: Recipe
    world: World
    folder: Path
    prompts: list[Prompt]
    heldout: list[Prompt]
    sampler: GroupSampler
    rewards: RewardSet
    policy: Policy
    updater: Updater
    copies: tuple[str, ...]
    messages: list[str] = field(default_factory=list)


def prepare(recipe: Recipe, *, resume: bool) -> Parts:
    """Check and build everything; what can fail without loading a model fails before one is loaded."""
    world = _world(recipe)
    check_batch(recipe, processes=world.size)
    folder = open_folder(recipe.run.dir)
    _check_folder(folder, resume=resume)
    prompts = load_prompts(recipe.data.prompts)
    heldout = _heldout(recipe, world)
    sampler = _sampler(recipe, prompts)
    rewards = RewardSet.from_specs(recipe.rewards, failure_budget=recipe.scoring.failure_budget)
    _check_leash(recipe)
    _check_rewards(rewards, recipe, prompts, heldout)
    if world.main:
        (folder / "config.yaml").write_text(dump(recipe))
        write_json(folder / "environment.json", environment(world))
    copies = _copies(recipe)
    policy = _policy(recipe, world, copies)
    _check_sizes(recipe, policy)
    messages = _encode_ahead(policy, [*prompts, *heldout])
    world.wait()
    return Parts(
        recipe=recipe,
        world=world,
        folder=folder,
        prompts=prompts,
        heldout=heldout,
        sampler=sampler,
        rewards=rewards,
        policy=policy,
        updater=Updater(policy, recipe, world),
        copies=copies,
        messages=messages,
    )


def _world(recipe: Recipe) -> World:
    from accelerate import Accelerator

    trackers: list[Any] = list(recipe.tracking.trackers)
    accelerator = Accelerator(log_with=trackers or None, project_dir=recipe.run.dir)
    if trackers:
        accelerator.init_trackers(recipe.tracking.project)
    return World(accelerator)


def _check_folder(folder: Path, *, resume: bool) -> None:
    if resume and latest_checkpoint(folder) is None:
        raise CheckpointError(f"{folder} holds no checkpoint to resume from: start the run without --resume.")
    if not resume and holds_results(folder):
        raise ConfigError(
            f"{folder} already holds a run; continue it with `imgrl train --resume {folder}`, "
            "or choose another run.dir"
        )


def _heldout(recipe: Recipe, world: World) -> list[Prompt]:
    settings = recipe.evaluation
    heldout = load_prompts(settings.prompts)[: settings.limit]
    images = len(heldout) * settings.images_per_prompt
    if images < world.size:
        raise ConfigError(
            f"an evaluation of {images} images cannot be shared by {world.size} processes; raise "
            "evaluation.images_per_prompt or evaluation.limit"
        )
    return heldout


def _check_rewards(
    rewards: RewardSet, recipe: Recipe, prompts: Sequence[Prompt], heldout: Sequence[Prompt]
) -> None:
    """Try every reward on both sets of prompts; the training set, last, fixes the columns."""
    size = {"height": recipe.model.height or 64, "width": recipe.model.width or 64}
    if column_names(heldout) != column_names(prompts):
        try:
            rewards.check(heldout, **size)
        except RewardError as error:
            raise RewardError(f"evaluation.prompts do not suit the rewards: {error}") from error
    rewards.check(prompts, **size)


def _check_sizes(recipe: Recipe, policy: Policy) -> None:
    """Refuse an image size or step count that would only fail in the middle of the first round."""
    model, steps = recipe.model, recipe.rollout.steps
    policy.latent_shape(model.height, model.width)
    try:
        recipe.objective.times.draw(policy.sigmas(steps, model.height, model.width), generator(0))
    except ValueError as error:
        raise ConfigError(
            f"rollout.steps is {steps}, which does not suit objective.times: {error}"
        ) from error


def _sampler(recipe: Recipe, prompts: Sequence[Prompt]) -> GroupSampler:
    key = recipe.data.balance
    if key is not None:
        missing = next((p for p in prompts if key not in p.columns), None)
        if missing is not None:
            raise ConfigError(
                f"data.balance is {key!r}, but prompt {missing.text!r} has no such column: balance by a column that "
                "every prompt has, or leave it out."
            )
    balance = None if key is None else [str(prompt.columns[key]) for prompt in prompts]
    try:
        return GroupSampler(len(prompts), recipe.batch.groups, recipe.run.seed, balance=balance)
    except ValueError as error:
        raise ConfigError(f"batch.groups does not fit data.prompts: {error}") from error


def _copies(recipe: Recipe) -> tuple[str, ...]:
    """Names of the lagging copies that this recipe uses."""
    objective = recipe.objective
    copies = ["old"] if objective.uses_old or objective.sampling is None else []
    if objective.sampling is not None:
        copies.append("sampling")
    if recipe.evaluation.ema is not None:
        copies.append("ema")
    return tuple(copies)


def _policy(recipe: Recipe, world: World, copies: tuple[str, ...]) -> Policy:
    from imgrl.policies import load_policy

    model = recipe.model
    names = (*copies, "frozen") if recipe.objective.anchor.active or model.train == "lora" else copies
    return load_policy(
        model_path(model.path),
        train=model.train,
        lora=model.lora,
        names=names,
        dtype=model.dtype,
        device=world.device,
        max_sequence_length=model.max_sequence_length,
        gradient_checkpointing=model.gradient_checkpointing,
        compile=model.compile,
        embedding_folder=model.embedding_folder,
        distilled_guidance=model.distilled_guidance,
        fold_zero_tokens=model.fold_zero_tokens,
    )


def _encode_ahead(policy: Policy, prompts: Sequence[Prompt]) -> list[str]:
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    if len(texts) > _ENCODE_AHEAD:
        return [f"{len(texts)} prompts: text encoders stay in memory"]
    policy.encode(texts)
    policy.drop_encoders()
    return []


def _check_leash(recipe: Recipe) -> None:
    """An anchor driven by the raw reward needs one in [0, 1]; negative weights cannot give that."""
    from imgrl.rewards.spec import read_spec

    anchor = recipe.objective.anchor
    if not anchor.active or anchor.adaptive not in ("raw", "batch_mean_raw"):
        return
    total = math.fsum(read_spec(name, given).weight for name, given in recipe.rewards.items())
    if total > 1 + 1e-9:
        raise ConfigError(
            f"objective.anchor.adaptive is {anchor.adaptive!r}, which needs a combined reward within [0, 1], but the "
            f"weights add up to {total:g}: lower them to a sum of 1, or choose adaptive: advantage or none."
        )
