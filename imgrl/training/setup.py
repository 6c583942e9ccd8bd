"""From a recipe to everything a run needs, cheap checks first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imgrl.data.sampler import GroupSampler
from imgrl.errors import ConfigError
from imgrl.recipe import Recipe, as_dict, dump, flat_settings
from imgrl.resources import model_path
from imgrl.rewards import RewardSet
from imgrl.training.checks import check_model, check_recipe, check_resume
from imgrl.training.distributed import World
from imgrl.training.geometry import kept_copies
from imgrl.training.imitation import Imitated, load_captioned
from imgrl.training.launch import refuse_sharded_weights
from imgrl.training.run_folder import holds_results, open_folder, replace, write_json
from imgrl.training.tracking import environment
from imgrl.training.update import Updater
from imgrl.types import Prompt

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = ["Parts", "prepare"]


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
    folder = open_folder(recipe.run.dir)
    _check_folder(folder, recipe, resume=resume)
    checked = check_recipe(recipe, processes=world.size)
    if recipe.run.deterministic:
        # cuBLAS reads this when it starts; warn_only because a few operations have no such kernel.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    if recipe.tracking.trackers:
        world.accelerator.init_trackers(recipe.tracking.project, config=_tracked(recipe))
    if world.main:
        replace(folder / "config.yaml", dump(recipe))  # a later --resume reads it
        write_json(folder / "environment.json", environment(world))
    copies = kept_copies(recipe)
    policy = _policy(recipe, world, copies)
    check_model(recipe, policy)
    _prepare_learners(recipe, checked.rewards, policy, folder)
    updater = Updater(policy, recipe, world)
    updater.imitated = _imitated(recipe, policy, world)
    shown = [] if updater.imitated is None else [text for text, _ in updater.imitated.captions]
    texts = [prompt.text for prompt in (*checked.prompts, *checked.heldout)]
    messages = _encode_ahead(policy, [*texts, *shown], world, folder)
    world.wait()
    return Parts(
        recipe=recipe,
        world=world,
        folder=folder,
        prompts=checked.prompts,
        heldout=checked.heldout,
        sampler=checked.sampler,
        rewards=checked.rewards,
        policy=policy,
        updater=updater,
        copies=copies,
        messages=messages,
    )


def _world(recipe: Recipe) -> World:
    from accelerate import Accelerator

    refuse_sharded_weights(os.environ, command="imgrl train")
    trackers: list[Any] = list(recipe.tracking.trackers)
    return World(Accelerator(log_with=trackers or None, project_dir=recipe.run.dir))


def _tracked(recipe: Recipe) -> dict[str, Any]:
    """The recipe as trackers take it: plain numbers and texts by dotted key."""
    settings = flat_settings(as_dict(recipe))
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}


def _check_folder(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    if resume:
        check_resume(folder, recipe)
    elif holds_results(folder):
        raise ConfigError(
            f"{folder} already holds a run; continue it with `imgrl train --resume {folder}`, "
            "or choose another run.dir"
        )


def _policy(recipe: Recipe, world: World, copies: tuple[str, ...]) -> Policy:
    from imgrl.policies import load_policy

    model = recipe.model
    names = (*copies, "frozen") if recipe.objective.anchor.active or model.train == "lora" else copies
    return load_policy(
        model_path(model.path),
        train=model.train,
        lora=model.lora,
        mask=model.lora_mask,
        mask_seed=recipe.run.seed,
        names=names,
        dtype=model.dtype,
        vae_dtype=model.vae_dtype,
        device=world.device,
        max_sequence_length=model.max_sequence_length,
        gradient_checkpointing=model.gradient_checkpointing,
        compile=model.compile,
        embedding_folder=model.embedding_folder,
        distilled_guidance=model.distilled_guidance,
        fold_zero_tokens=model.fold_zero_tokens,
    )


def _prepare_learners(recipe: Recipe, rewards: RewardSet, policy: Policy, folder: Path) -> None:
    """Show rewards that learn their references as the policy's own autoencoder draws them, once for all starts.

    What that gave is kept beside the scores of ``scoring.cache``, where other runs find it too, or in the run folder.
    """
    from imgrl.rewards.fingerprint import fingerprint
    from imgrl.rewards.reference_cache import KeptRoundTrip, ReferenceCache

    if not rewards.learners:
        return

    def round_trip(images: torch.Tensor) -> torch.Tensor:
        return policy.decode(policy.to_latents(images, batch=8), batch=8).cpu()

    shared = recipe.scoring.cache
    kept = KeptRoundTrip(
        round_trip,
        identity=fingerprint(policy.vae, str(policy.vae_dtype), sorted(policy.vae.config.items(), key=str)),
        cache=ReferenceCache((folder if shared is None else Path(shared).parent) / "references"),
    )
    height, width = recipe.model.height or policy.default_size, recipe.model.width or policy.default_size
    rewards.learners.prepare(height=height, width=width, round_trip=kept)


def _imitated(recipe: Recipe, policy: Policy, world: World) -> Imitated | None:
    """The pictures of ``imitation``, if there are any, as the policy's autoencoder sees them."""
    if recipe.imitation.pictures is None:
        return None
    height, width = recipe.model.height or policy.default_size, recipe.model.width or policy.default_size
    found = load_captioned(recipe.imitation, height=height, width=width)
    return Imitated(policy, found, settings=recipe.imitation, seed=recipe.run.seed, world=world)


def _encode_ahead(policy: Policy, texts: Sequence[str], world: World, folder: Path) -> list[str]:
    """Embed every prompt, so that the encoders' memory is free for training; returns what the user should know."""
    from imgrl.policies.embeddings import encode_ahead

    told = encode_ahead(
        policy,
        list(dict.fromkeys(texts)),
        folder / "embeddings",
        rank=world.rank,
        size=world.size,
        wait=world.wait,
    )
    return [] if told is None else [told]
