"""What an update trains on: a rollout's images at noise levels, or the random steps of its sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from imgrl import flow
from imgrl.recipe import Recipe
from imgrl.training.rollout import Rollout
from imgrl.training.seeds import NOISE, TIMES, generator, normal
from imgrl.types import Noised, Transition

__all__ = ["empty_points", "noised_points", "points", "transition_points"]


def points(
    rollout: Rollout, rows: Tensor, level: int, *, recipe: Recipe, sigmas: Tensor, round: int
) -> Noised | Transition:
    """Local rows of a rollout at the ``level``-th of their points."""
    if recipe.objective.sampler is not None:
        return transition_points(rollout, rows, level)
    return noised_points(rollout, rows, level, recipe=recipe, sigmas=sigmas, round=round)


def noised_points(
    rollout: Rollout, rows: Tensor, level: int, *, recipe: Recipe, sigmas: Tensor, round: int
) -> Noised:
    """Local rows of a rollout at the ``level``-th noise level of their group.

    The level is drawn per group and the noise per image (per group, if the objective shares it), both from keys, so
    every process and every velocity of a point sees the same ones.
    """
    seed, samples, objective = recipe.run.seed, rollout.samples, recipe.objective
    assert objective.times is not None
    clean = samples.latents[rows]
    groups = samples.group[rows].tolist()
    drawn = {g: objective.times.draw(sigmas, generator(seed, TIMES, g)) for g in dict.fromkeys(groups)}
    sigma = torch.stack([drawn[g][level] for g in groups]).to(clean.device)
    owners = groups if objective.shares_noise else [int(row) for row in rollout.rows[rows]]
    keys = [(seed, NOISE, round, owner, level) for owner in owners]
    noise = normal(tuple(clean.shape[1:]), keys).to(clean.device)
    return Noised(
        clean=clean,
        noise=noise,
        sigma=sigma,
        noisy=flow.add_noise(clean, noise, sigma),
        target=flow.velocity_target(clean, noise),
    )


def transition_points(rollout: Rollout, rows: Tensor, level: int) -> Transition:
    """Local rows of a rollout at the ``level``-th of its random steps."""
    path = rollout.path
    assert path is not None
    rows = rows.to(path.states.device)
    return Transition(
        state=path.states[level, rows],
        after=path.states[level + 1, rows],
        log_prob=path.log_prob[level, rows],
        mean=None if path.mean is None else path.mean[level, rows],
        sigmas=path.sigmas,
        index=path.start + level,
    )


def empty_points(rollout: Rollout) -> Noised | Transition:
    """Points of no image, for a process that must take part in the collective statistics of a loss."""
    if rollout.path is not None:
        return transition_points(rollout, torch.zeros(0, dtype=torch.int64), 0)
    clean = rollout.samples.latents[:0].float()
    return Noised(clean=clean, noise=clean, sigma=clean.new_zeros(0), noisy=clean, target=clean)
