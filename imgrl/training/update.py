"""The second half of a round: noised points, three velocities at each, the objective, optimiser steps."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imgrl import flow
from imgrl.anchor.divergence import velocity_gap
from imgrl.objectives.image import Batch
from imgrl.recipe import Recipe
from imgrl.training.distributed import World
from imgrl.training.groups import Advantages
from imgrl.training.rollout import Rollout
from imgrl.training.seeds import NOISE, TIMES, generator, normal
from imgrl.types import Conditioning, Noised

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = ["Updater", "UpdateResult", "noised_points"]


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """What the optimiser steps of a round did."""

    steps: int
    """Optimiser steps taken; an update without a single informative group takes none."""
    metrics: dict[str, float]
    """Means over all trained points of all processes."""


def noised_points(
    rollout: Rollout, rows: Tensor, level: int, *, recipe: Recipe, sigmas: Tensor, round: int
) -> Noised:
    """Local rows of a rollout at the ``level``-th noise level of their group.

    The level is drawn per group and the noise per image, both from keys, so every process and every velocity of a
    point sees the same ones.
    """
    seed, samples = recipe.run.seed, rollout.samples
    clean = samples.latents[rows]
    groups = samples.group[rows].tolist()
    times = recipe.objective.times
    drawn = {g: times.draw(sigmas, generator(seed, TIMES, g)) for g in dict.fromkeys(groups)}
    sigma = torch.stack([drawn[g][level] for g in groups]).to(clean.device)
    keys = [(seed, NOISE, round, int(row), level) for row in rollout.rows[rows]]
    noise = normal(tuple(clean.shape[1:]), keys).to(clean.device)
    return Noised(
        clean=clean,
        noise=noise,
        sigma=sigma,
        noisy=flow.add_noise(clean, noise, sigma),
        target=flow.velocity_target(clean, noise),
    )


class Updater:
    """Takes the optimiser steps of a round."""

    def __init__(self, policy: Policy, recipe: Recipe, world: World) -> None:
        self.policy, self.recipe, self.world = policy, recipe, world
        settings = recipe.optimizer
        self.parameters = policy.weights.parameters()
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        # fp16 gradients of small losses vanish without scaling; bf16 and fp32 need none.
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.model.dtype == "fp16")

    def run(self, rollout: Rollout, advantages: Advantages, mine: Tensor, *, round: int) -> UpdateResult:
        """Train on a rollout; ``advantages`` are of the whole round, ``mine`` are this process's rows in it."""
        batch, sums = self.recipe.batch, defaultdict(float)
        advantage = advantages.advantage[mine]
        keep = advantages.valid[mine] & ~_in(rollout.samples.group, advantages.zero_variance_groups)
        micro = self.world.share(batch.micro_groups * batch.group_size)
        width = micro.stop - micro.start
        per_update = batch.groups // batch.micro_groups // batch.updates_per_round
        taken, norms = 0, []
        for update in range(batch.updates_per_round):
            starts = [width * (update * per_update + m) for m in range(per_update)]
            chosen = [torch.arange(s, s + width)[keep[s : s + width]] for s in starts]
            held = self.world.add(torch.tensor([len(rows) for rows in chosen], device=self.world.device))
            if not held.any():
                continue
            points = int(held.sum()) * self.recipe.objective.times.count
            for start, rows, everywhere in zip(starts, chosen, held.tolist(), strict=True):
                if len(rows):
                    self._accumulate(rollout, rows, advantage, points, round, sums)
                elif everywhere:
                    self._attend(rollout, start)
            norms.append(self._step())
            taken += 1
        return UpdateResult(steps=taken, metrics=self._means(sums, norms))

    def _accumulate(
        self,
        rollout: Rollout,
        rows: Tensor,
        advantage: Tensor,
        points: int,
        round: int,
        sums: dict[str, float],
    ) -> None:
        """Add the gradient of one micro-batch at every noise level."""
        recipe = self.recipe
        cond = self.policy.encode([rollout.samples.prompts[int(row)].text for row in rows])
        sigmas = self.policy.sigmas(recipe.rollout.steps, recipe.model.height, recipe.model.width)
        for level in range(recipe.objective.times.count):
            noised = noised_points(rollout, rows, level, recipe=recipe, sigmas=sigmas, round=round)
            batch = self._velocities(noised, cond, rollout, rows, advantage)
            output = recipe.objective.loss(batch, gather=self.world.gather)
            self.scaler.scale(output.loss.sum() / points).backward()
            gap = (
                {}
                if batch.anchor is None
                else {"anchor_gap": velocity_gap(batch.current.detach(), batch.anchor)}
            )
            for name, values in ({"loss": output.loss.detach()} | output.metrics | gap).items():
                sums[name] += float(values.double().sum())
            sums["count"] += len(rows)

    def _attend(self, rollout: Rollout, start: int) -> None:
        """Take part in a micro-batch with no rows: the group statistics inside the loss are collective.

        For a process whose share was skipped while others hold some of it.
        """
        objective, device = self.recipe.objective, self.world.device
        clean, none = rollout.samples.latents[start:start].float(), torch.zeros(0, device=device)
        noised = Noised(clean=clean, noise=clean, sigma=none, noisy=clean, target=clean)
        batch = Batch(
            old=clean if objective.uses_old else None,
            anchor=clean if objective.anchor.active else None,
            current=clean,
            noised=noised,
            advantage=none,
            raw=none,
            group=torch.zeros(0, dtype=torch.int64, device=device),
        )
        for _ in range(objective.times.count):
            objective.loss(batch, gather=self.world.gather)

    def _velocities(
        self, noised: Noised, cond: Conditioning, rollout: Rollout, rows: Tensor, advantage: Tensor
    ) -> Batch:
        """All velocities of one set of points; only the current one carries a gradient."""
        objective, policy = self.recipe.objective, self.policy
        device = noised.noisy.device

        def velocity(weights: str, guidance: float = 1.0) -> Tensor:
            return policy.velocity(noised.noisy, noised.sigma, cond, weights=weights, guidance=guidance)

        return Batch(
            old=velocity("old") if objective.uses_old else None,
            anchor=velocity("frozen", objective.anchor.guidance) if objective.anchor.active else None,
            current=velocity("current"),
            noised=noised,
            advantage=advantage[rows].to(device, torch.float32),
            raw=rollout.scores.total[rows].to(device, torch.float32),
            group=rollout.samples.group[rows].to(device),
        )

    def _step(self) -> float:
        """Add gradients over processes, clip, step; returns the gradient norm before clipping."""
        self.world.add_gradients(self.parameters)  # first, so that an overflow anywhere is seen everywhere
        self.scaler.unscale_(self.optimizer)
        limit = self.recipe.optimizer.clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, float("inf") if limit is None else limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _means(self, sums: dict[str, float], norms: list[float]) -> dict[str, float]:
        """Means over points, the variance ratio, and the gradient norm, equal on every process."""
        names = sorted(set(self.world.gather_objects(list(sums))))
        totals = self.world.add(
            torch.tensor([sums[n] for n in names], dtype=torch.float64, device=self.world.device)
        )
        total = dict(zip(names, totals.tolist(), strict=True))
        count = total.pop("count", 0.0)
        metrics = {f"train/{name}": value / count for name, value in total.items()} if count else {}
        if total.get("target_variance"):
            metrics["train/variance_ratio"] = total["gain_variance"] / total["target_variance"]
        if norms:
            metrics["train/grad_norm"] = sum(norms) / len(norms)
        return metrics

    def state(self) -> dict[str, Any]:
        """Optimiser and scaler state for a checkpoint."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}


def _in(group: Tensor, numbers: tuple[int, ...]) -> Tensor:
    return torch.isin(group, torch.tensor(numbers, dtype=group.dtype))
