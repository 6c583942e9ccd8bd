"""The arithmetic of a round: what must divide what. Nothing is rounded; what does not fit is refused."""

from __future__ import annotations

from imgrl.errors import ConfigError
from imgrl.recipe import Recipe, RewardSpec

__all__ = ["check_batch", "kept_copies", "levels"]


def check_batch(recipe: Recipe, *, processes: int = 1) -> None:
    """Refuse a recipe whose numbers do not fit each other.

    Args:
        recipe: what to check.
        processes: how many processes share each micro-batch.

    Raises:
        ConfigError: naming the settings, their values and the nearest ones that would do.
    """
    _check_groups(recipe, processes)
    _check_rollout(recipe, processes)
    levels(recipe)
    _check_settings(recipe, processes)


def kept_copies(recipe: Recipe) -> tuple[str, ...]:
    """Names of the lagging copies of the weights that a run keeps beside the trained ones."""
    objective = recipe.objective
    copies = ["old"] if objective.uses_old or objective.sampling is None else []
    if objective.sampling is not None:
        copies.append("sampling")
    if recipe.evaluation.ema is not None:
        copies.append("ema")
    return tuple(copies)


def levels(recipe: Recipe) -> int:
    """Points of each image in an update.

    Raises:
        ConfigError: the rollout is too short for its random steps.
    """
    objective = recipe.objective
    if objective.sampler is None:
        return objective.times.count
    try:
        return objective.sampler.count(recipe.rollout.steps)
    except ValueError as error:
        raise ConfigError(
            f"rollout.steps is {recipe.rollout.steps}, which does not suit objective.sampler: {error}"
        ) from error


def _check_groups(recipe: Recipe, processes: int) -> None:
    batch = recipe.batch
    if batch.group_size < 2:
        raise ConfigError(
            f"batch.group_size is {batch.group_size}, but images are compared within their group, "
            "so at least 2 are needed"
        )
    if batch.groups % batch.micro_groups:
        raise ConfigError(
            f"batch.groups ({batch.groups}) must be a multiple of batch.micro_groups ({batch.micro_groups}); "
            f"micro_groups could be {_divisors(batch.groups)}"
        )
    micro = batch.groups // batch.micro_groups
    if micro % batch.updates_per_round:
        raise ConfigError(
            f"batch.updates_per_round ({batch.updates_per_round}) must divide the {micro} micro-batches "
            f"of a round (groups / micro_groups); it could be {_divisors(micro)}"
        )
    rows = batch.micro_groups * batch.group_size
    if rows % processes:
        raise ConfigError(
            f"a micro-batch of {rows} images (micro_groups {batch.micro_groups} x group_size "
            f"{batch.group_size}) cannot be shared equally by {processes} processes; "
            f"{rows} has the divisors {_divisors(rows)}"
        )


def _check_rollout(recipe: Recipe, processes: int) -> None:
    share = recipe.batch.images // processes
    if recipe.objective.sampler is not None and recipe.rollout.solver != "euler":
        raise ConfigError(
            f"rollout.solver is {recipe.rollout.solver!r}, but {recipe.objective.name} takes random steps, "
            "which go with 'euler' only"
        )
    if recipe.rollout.batch is not None and recipe.rollout.batch > share:
        raise ConfigError(
            f"rollout.batch is {recipe.rollout.batch}, but a process samples only {share} images a round; "
            f"give at most {share}, or leave it out"
        )
    if recipe.scoring.overlap and (recipe.rollout.batch or share) >= share:
        raise ConfigError(
            f"scoring.overlap scores one rollout.batch while the next is sampled, but a process samples its {share} "
            f"images of a round at once: give a rollout.batch below {share}, or leave scoring.overlap out"
        )


def _check_settings(recipe: Recipe, processes: int) -> None:
    if recipe.evaluation.weights == "ema" and recipe.evaluation.ema is None:
        raise ConfigError(
            "evaluation.weights is 'ema', so evaluation.ema must give the average's decay, such as 0.9"
        )
    kept = ("current", *kept_copies(recipe))
    if recipe.evaluation.weights not in kept:
        raise ConfigError(
            f"evaluation.weights is {recipe.evaluation.weights!r}, but this objective keeps no such copy; "
            f"it keeps {', '.join(sorted(kept))}"
        )
    if recipe.imitation.pictures is not None and recipe.imitation.batch % processes:
        raise ConfigError(
            f"imitation.batch ({recipe.imitation.batch} pictures) cannot be shared equally by {processes} processes; "
            f"make it a multiple of {processes}"
        )
    _check_guided_anchor(recipe)
    weights = [spec.weight if isinstance(spec, RewardSpec) else spec for spec in recipe.rewards.values()]
    if not any(weights):
        raise ConfigError("every reward has weight 0, so nothing would be learned; give one of them a weight")


def _check_guided_anchor(recipe: Recipe) -> None:
    """Under guidance the policy that takes a random step is the guided one, and so must its anchor be."""
    anchor, guidance = recipe.objective.anchor, recipe.rollout.guidance
    if (
        recipe.objective.sampler is not None
        and anchor.active
        and guidance > 1
        and anchor.guidance != guidance
    ):
        raise ConfigError(
            f"rollout.guidance is {guidance:g} and objective.anchor.guidance {anchor.guidance:g}, so the policy would "
            "be pulled away from the model it starts as: make them equal, or give the anchor weight 0"
        )


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
