"""The first half of a round: prompts to images, images to rewards, rewards to advantages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.flow.trajectory import Path, joined
from imgrl.recipe import Recipe
from imgrl.training.distributed import World
from imgrl.training.groups import Advantages, group_advantages
from imgrl.training.phases import Phases
from imgrl.training.scoring import Judge
from imgrl.training.seeds import IMAGE, WINDOW, derive, generator
from imgrl.types import Prompt, Samples, Scores

if TYPE_CHECKING:
    from imgrl.policies import Policy
    from imgrl.rewards import RewardSet

__all__ = ["Rollout", "advantages_of", "collect", "local_rows"]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """This process's share of a round: images, what they earned, and where they stand in the whole."""

    samples: Samples
    scores: Scores
    rows: Tensor
    """int64 [n]: each image's number in the round, 0 .. groups x group_size."""
    failures: Mapping[str, int]
    """On how many images each reward failed, over all processes."""
    path: Path | None = None
    """The random steps, for an objective that trains on them."""


def local_rows(recipe: Recipe, world: World) -> Tensor:
    """The rows of a round that this process makes: its slice of every micro-batch."""
    batch = recipe.batch
    micro = batch.micro_groups * batch.group_size
    starts = range(0, batch.images, micro)
    return torch.cat([torch.arange(start, start + micro)[world.share(micro)] for start in starts])


def collect(
    policy: Policy,
    rewards: RewardSet,
    prompts: Sequence[Prompt],
    *,
    recipe: Recipe,
    round: int,
    world: World,
    phases: Phases,
) -> Rollout:
    """Sample, decode and score this process's images of a round; ``prompts`` has one entry a group."""
    rows, size = local_rows(recipe, world), recipe.batch.group_size
    chosen = tuple(prompts[int(row) // size] for row in rows)
    seeds = tuple(derive(recipe.run.seed, IMAGE, round, int(row)) for row in rows)
    group = round * recipe.batch.groups + rows // size

    def score(images: Tensor, prompts: Sequence[Prompt], group: Tensor) -> Scores:
        return rewards.score(images, prompts, group=group, group_size=size, share=True, training=True)

    start = _window(recipe, round)
    latents, parts, paths = [], [], []
    with Judge(score, beside=recipe.scoring.overlap) as judge:
        for part in _parts(recipe, len(chosen)):
            with phases("rollout"):
                made, path = _sampled(policy, chosen[part], seeds[part], recipe, start)
            with phases("decode"):
                parts.append(policy.decode(made).cpu())  # latents stay on the device, images leave it
            judge.take(parts[-1], chosen[part], group[part])
            latents.append(made)
            paths += [] if path is None else [path]
        images = torch.cat(parts)
        with phases("reward"):
            scores = judge.scores(images, chosen, group)
            failures = world.add_counts(scores.failures)
            rewards.check_failures(failures, recipe.batch.images)
    samples = Samples(prompts=chosen, group=group, seeds=seeds, latents=torch.cat(latents), images=images)
    path = joined(paths) if paths else None
    return Rollout(samples=samples, scores=scores, rows=rows, failures=failures, path=path)


def _parts(recipe: Recipe, count: int) -> Iterator[slice]:
    """Which of a process's images each forward batch makes."""
    step = recipe.rollout.batch or count
    return (slice(first, first + step) for first in range(0, count, step))


def _window(recipe: Recipe, round: int) -> int:
    """First random step of the round's rollouts; the same for every process, since it depends on a key alone."""
    sampler = recipe.objective.sampler
    if sampler is None:
        return 0
    return sampler.start(recipe.rollout.steps, generator(recipe.run.seed, WINDOW, round))


def _sampled(
    policy: Policy, prompts: Sequence[Prompt], seeds: Sequence[int], recipe: Recipe, start: int
) -> tuple[Tensor, Path | None]:
    """Clean latents of one forward batch, and its random steps, if there are any."""
    model, rollout, objective = recipe.model, recipe.rollout, recipe.objective
    options: dict[str, Any] = {
        "steps": rollout.steps,
        "weights": sampling_name(recipe),
        "guidance": rollout.guidance,
        "height": model.height,
        "width": model.width,
    }
    cond = policy.encode([prompt.text for prompt in prompts])
    if objective.sampler is None:
        return policy.sample(cond, seeds, solver=rollout.solver, **options), None
    keep = objective.needs_mean
    path = policy.sample_path(cond, seeds, sampler=objective.sampler, start=start, keep_mean=keep, **options)
    return path.clean, path


def sampling_name(recipe: Recipe) -> str:
    """The weights that make the images: their own copy, or the objective's old one if they share."""
    return "old" if recipe.objective.sampling is None else "sampling"


def advantages_of(rollout: Rollout, *, recipe: Recipe, world: World) -> tuple[Advantages, Tensor]:
    """Advantages of the whole round (rows of all processes, in rank order), and which rows are this process's."""
    settings, scores = recipe.advantage, rollout.scores
    group = world.gather(rollout.samples.group.to(world.device)).cpu()
    mask = world.gather(scores.mask.to(world.device)).cpu()

    def whole(values: Tensor) -> Tensor:
        return world.gather(values.to(world.device)).cpu()

    weights = {name: weight for name, weight in _weights(recipe).items() if weight}
    if not mask.any():
        return _nothing_scored(rollout, group), _rows_here(group, world)
    total = whole(scores.total)
    _check_scores(recipe, total, mask)
    named = {name: whole(values) for name, values in scores.values.items() if name in weights}
    try:
        advantages = group_advantages(
            named if settings.combine == "gdpo" or len(named) > 1 else total,
            group,
            std=settings.std,
            eps=settings.eps,
            eps_added=settings.eps_added,
            clip=recipe.objective.advantage_clip,
            mask=mask,
            combine=settings.combine,
            weights=weights if settings.combine == "gdpo" or len(named) > 1 else None,
        )
    except ValueError as error:  # a reward that answers for some images of a group only
        raise RewardError(f"The rewards of the round cannot be compared: {error}") from error
    return advantages, _rows_here(group, world)


def _rows_here(group: Tensor, world: World) -> Tensor:
    return torch.arange(len(group)).view(world.size, -1)[world.rank]


def _nothing_scored(rollout: Rollout, group: Tensor) -> Advantages:
    """A round that teaches nothing because every call failed, as the budget allows: the run goes on without it.

    Raises:
        RewardError: if nothing failed, so that no later round can be better.
    """
    if not any(rollout.failures.values()):
        raise RewardError(
            "No image of the round has a score: no reward with a weight applies to any of them; check the prompts."
        )
    nothing = torch.zeros(len(group), dtype=torch.float64)
    groups = tuple(group.unique().tolist())
    return Advantages(advantage=nothing, valid=nothing.bool(), zero_variance_groups=(), dropped_groups=groups)


def _check_scores(recipe: Recipe, total: Tensor, mask: Tensor) -> None:
    """What every process must refuse alike, since it concerns the whole round."""
    anchor, good = recipe.objective.anchor, total[mask]
    if anchor.needs_unit_rewards:
        low, high = float(good.min()), float(good.max())
        if low < -1e-6 or high > 1 + 1e-6:
            raise RewardError(
                f"objective.anchor.adaptive is {anchor.adaptive!r}, which needs combined rewards within [0, 1], "
                f"but this round's go from {low:.4g} to {high:.4g}: rescale them, or choose adaptive: advantage "
                "or none."
            )


def _weights(recipe: Recipe) -> dict[str, float]:
    from imgrl.rewards.spec import read_spec

    return {name: read_spec(name, given).weight for name, given in recipe.rewards.items()}
