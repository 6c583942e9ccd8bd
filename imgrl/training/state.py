"""A run's full state to and from checkpoints: resuming continues bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgrl.errors import CheckpointError
from imgrl.recipe import config_hash, dump
from imgrl.training.checkpoint import (
    latest_checkpoint,
    optimizer_tensors,
    pack,
    prune,
    read_checkpoint,
    restore_optimizer,
    unpack,
    write_checkpoint,
)
from imgrl.training.setup import Parts
from imgrl.types import Prompt

__all__ = ["Progress", "restore", "save"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    round: int
    """Rounds done."""
    step: int
    """Optimiser steps done."""
    seconds: float
    """Training time."""
    phases: Mapping[str, float] = field(default_factory=dict)
    """Wall time by phase."""


def save(parts: Parts, progress: Progress) -> Path:
    """Write a checkpoint of everything that the coming rounds depend on.

    Random numbers need no state: each is drawn from a key (run seed, round, row).
    """
    run = parts.folder
    learned = parts.rewards.learners.state_dict(parts.world)  # every process has a part of it
    if parts.world.main:
        weights = parts.policy.weights
        sampler_tensors, sampler_plain = split_tensors(parts.sampler.state_dict())
        reward_tensors, reward_plain = split_tensors(learned)
        write_checkpoint(
            run,
            progress.round,
            tensors={
                "weights": pack(
                    {name: weights.state_dict(name) for name in ("current", *parts.copies, *weights.lasting)}
                ),
                "optimizer": optimizer_tensors(parts.updater.optimizer),
                "sampler": sampler_tensors,
                "rewards": reward_tensors,
            },
            state={
                "step": progress.step,
                "seconds": progress.seconds,
                "phases": dict(progress.phases),
                "config_hash": config_hash(parts.recipe),
                "prompts": prompts_digest(parts.prompts),
                "sampler": sampler_plain,
                "rewards": reward_plain,
                "scaler": parts.updater.scaler.state_dict(),
            },
            config=dump(parts.recipe),
        )
        prune(run, parts.recipe.checkpoint.keep)
    parts.world.wait()
    return run / "checkpoints" / f"step-{progress.round}"


def restore(parts: Parts) -> Progress:
    """Load the newest checkpoint of the run; returns how far it was.

    Raises:
        CheckpointError: if there is none, it is damaged, or it belongs to other prompts.
    """
    folder = latest_checkpoint(parts.folder)
    if folder is None:
        raise CheckpointError(f"{parts.folder} holds no checkpoint to resume from.")
    state, tensors = read_checkpoint(folder)
    if state["prompts"] != prompts_digest(parts.prompts):
        raise CheckpointError(
            f"{folder} was trained on other prompts than {parts.recipe.data.prompts!r} holds now; restore them, "
            "or start a new run."
        )
    for name, saved in unpack(tensors["weights"]).items():
        parts.policy.weights.load_state_dict(name, saved)
    restore_optimizer(parts.updater.optimizer, tensors["optimizer"])
    parts.sampler.load_state_dict(join_tensors(tensors["sampler"], state["sampler"]))
    parts.rewards.learners.load_state_dict(join_tensors(tensors["rewards"], state["rewards"]), parts.world)
    if state["scaler"]:
        parts.updater.scaler.load_state_dict(state["scaler"])
    return Progress(
        round=state["round"], step=state["step"], seconds=state["seconds"], phases=state["phases"]
    )


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Digest of a data set's texts and columns, which a recipe only names."""
    rows = [[prompt.text, dict(prompt.columns)] for prompt in prompts]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=repr).encode()).hexdigest()


def split_tensors(value: Any, path: str = "root") -> tuple[dict[str, Tensor], Any]:
    """Take the tensors out of nested plain values: (tensors by path, values with the paths in their place)."""
    tensors: dict[str, Tensor] = {}
    if isinstance(value, Tensor):
        return {path: value}, {"__tensor__": path}
    if isinstance(value, dict):
        plain: Any = {}
        for key, entry in value.items():
            found, plain[key] = split_tensors(entry, f"{path}/{key}")
            tensors |= found
        return tensors, plain
    if isinstance(value, list | tuple):
        plain = []
        for index, entry in enumerate(value):
            found, rest = split_tensors(entry, f"{path}/{index}")
            tensors |= found
            plain.append(rest)
        return tensors, plain
    return tensors, value


def join_tensors(tensors: dict[str, Tensor], value: Any) -> Any:
    """Undo :func:`split_tensors`."""
    if isinstance(value, dict):
        if set(value) == {"__tensor__"}:
            return tensors[value["__tensor__"]].to(torch.device("cpu"))
        return {key: join_tensors(tensors, entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [join_tensors(tensors, entry) for entry in value]
    return value
