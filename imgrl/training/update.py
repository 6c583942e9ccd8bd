"""The second half of a round: noised points, three velocities at each, the objective, optimiser steps."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imgrl.anchor.divergence import velocity_gap
from imgrl.errors import ModelError
from imgrl.objectives.image import Batch
from imgrl.recipe import Recipe
from imgrl.training.distributed import World
from imgrl.training.geometry import levels
from imgrl.training.groups import Advantages
from imgrl.training.imitation import Imitated
from imgrl.training.phases import Phases
from imgrl.training.points import empty_points, points
from imgrl.training.rollout import Rollout
from imgrl.types import Conditioning, Noised, Transition

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = ["Updater", "UpdateResult"]


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """What the optimiser steps of a round did."""

    steps: int
    """Optimiser steps taken; an update without a single informative group takes none."""
    metrics: dict[str, float]
    """Means over all trained points of all processes."""


class Updater:
    """Takes the optimiser steps of a round."""

    def __init__(self, policy: Policy, recipe: Recipe, world: World) -> None:
        self.policy, self.recipe, self.world = policy, recipe, world
        self.phases = Phases()
        """Where the time of :meth:`run` is counted; the loop puts its own here."""
        self.imitated: Imitated | None = None
        """Pictures that every step also learns from."""
        settings = recipe.optimizer
        self.parameters = policy.weights.parameters()
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        # Of a LoRA the policy masks the product.
        if recipe.model.train == "full" and recipe.model.mask is not None:
            from imgrl.analysis.masks import MaskedUpdate, training_masks

            masks = training_masks(self.parameters, recipe.model.mask, seed=recipe.run.seed)
            MaskedUpdate(self.optimizer, masks)
        # fp16 gradients of small losses vanish without scaling; bf16 and fp32 need none.
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.model.dtype == "fp16")

    def run(
        self, rollout: Rollout, advantages: Advantages, mine: Tensor, *, round: int, step: int
    ) -> UpdateResult:
        """Train on a rollout; ``advantages`` are of the whole round, ``mine`` are this process's rows in it.

        ``step`` counts the optimiser steps of earlier rounds.
        """
        batch, kept = self.recipe.batch, defaultdict(list)
        advantage, raw = advantages.advantage[mine], self._raw(rollout)
        keep = advantages.valid[mine] & ~_in(rollout.samples.group, advantages.zero_variance_groups)
        micro = self.world.share(batch.micro_groups * batch.group_size)
        width = micro.stop - micro.start
        per_update = batch.groups // batch.micro_groups // batch.updates_per_round
        taken, norms = 0, []
        for update in range(batch.updates_per_round):
            starts = [width * (update * per_update + m) for m in range(per_update)]
            chosen = [torch.arange(s, s + width)[keep[s : s + width]] for s in starts]
            held = self.world.add(torch.tensor([len(rows) for rows in chosen], device=self.world.device))
            if not held.any() and not self._imitates(step + taken):
                continue
            total = int(held.sum()) * levels(self.recipe)
            for rows, everywhere in zip(chosen, held.tolist(), strict=True):
                if len(rows):
                    self._accumulate(rollout, rows, advantage, raw, total, round, kept)
                elif everywhere:
                    self._attend(rollout)
            if self._imitates(step + taken):
                self._imitate(step + taken, kept)
            with self.phases("update"):
                norm = self._step(step + taken)
            if norm is not None:
                norms.append(norm)
                taken += 1
        return UpdateResult(steps=taken, metrics=self._means(kept, norms))

    def _accumulate(
        self,
        rollout: Rollout,
        rows: Tensor,
        advantage: Tensor,
        raw: Tensor,
        total: int,
        round: int,
        kept: dict[str, list[Tensor]],
    ) -> None:
        """Add the gradient of one micro-batch at every noise level; metrics stay on the device until the end."""
        recipe = self.recipe
        with self.phases("points"):
            cond = self.policy.encode([rollout.samples.prompts[int(row)].text for row in rows])
            sigmas = self.policy.sigmas(recipe.rollout.steps, recipe.model.height, recipe.model.width)
        for level in range(levels(recipe)):
            with self.phases("points"):
                point = points(rollout, rows, level, recipe=recipe, sigmas=sigmas, round=round)
            with self.phases("update"):
                batch = self._velocities(point, cond, rollout.samples.group[rows], advantage[rows], raw[rows])
                output = recipe.objective.loss(batch, gather=self.world.gather)
                times = recipe.objective.times
                loss = output.loss * (1.0 if times is None else times.weight(level))
                self.scaler.scale(loss.sum() / total).backward()
            kept["loss"].append(loss.detach())
            for name, values in output.metrics.items():
                kept[name].append(values)
            if batch.anchor is not None:
                kept["anchor_gap"].append(velocity_gap(batch.current.detach(), batch.anchor))

    def _attend(self, rollout: Rollout) -> None:
        """Take part in a micro-batch with no rows: the group statistics inside the loss are collective.

        For a process whose share was skipped while others hold some of it.
        """
        objective, none = self.recipe.objective, torch.zeros(0, device=self.world.device)
        point, clean = empty_points(rollout), rollout.samples.latents[:0].float()
        batch = Batch(
            old=clean if objective.uses_old else None,
            anchor=clean if objective.anchor.active else None,
            current=clean,
            **_kind(point),
            advantage=none,
            raw=none,
            group=torch.zeros(0, dtype=torch.int64, device=self.world.device),
        )
        for _ in range(levels(self.recipe)):
            objective.loss(batch, gather=self.world.gather)

    def imitate(self, step: int) -> float:
        """Take step ``step`` of the run on pictures alone; returns their mean loss over all processes."""
        kept: dict[str, list[Tensor]] = defaultdict(list)
        self._imitate(step, kept)
        with self.phases("update"):
            self._step(step)
        return self._means(kept, [])["train/imitation"]

    def _imitates(self, step: int) -> bool:
        return self.imitated is not None and self.imitated.weight(step) != 0

    def _imitate(self, step: int, kept: dict[str, list[Tensor]]) -> None:
        """Add the gradient of the pictures' term: the weighted mean over a step's pictures on all processes."""
        assert self.imitated is not None
        with self.phases("update"):
            loss = self.imitated.loss(step)
            weight = self.imitated.weight(step) / self.imitated.settings.batch
            self.scaler.scale(loss.sum() * weight).backward()
        kept["imitation"].append(loss.detach())

    def _velocities(
        self, point: Noised | Transition, cond: Conditioning, group: Tensor, advantage: Tensor, raw: Tensor
    ) -> Batch:
        """All velocities of one set of points; only the current one carries a gradient."""
        objective, policy = self.recipe.objective, self.policy
        if isinstance(point, Noised):
            x, sigma, sampled = point.noisy, point.sigma, 1.0
        else:  # the policy that took the step is the guided one
            x, sigma, sampled = point.state, point.sigmas[point.index], self.recipe.rollout.guidance
        device = x.device

        def velocity(weights: str, guidance: float = 1.0) -> Tensor:
            return policy.velocity(x, sigma, cond, weights=weights, guidance=guidance)

        return Batch(
            old=velocity("old") if objective.uses_old else None,
            anchor=velocity("frozen", objective.anchor.guidance) if objective.anchor.active else None,
            current=velocity("current", sampled),
            **_kind(point),
            advantage=advantage.to(device, torch.float32),
            raw=raw.to(device, torch.float32),
            group=group.to(device),
        )

    def _raw(self, rollout: Rollout) -> Tensor:
        """Each image's raw reward, or for an anchor that follows the batch's mean, the mean of the whole round.

        Of the round, and not of a micro-batch, so that it does not depend on how the round is cut, and prompts without
        a signal, all right or all wrong, count too.
        """
        raw, mask = rollout.scores.total, rollout.scores.mask
        if self.recipe.objective.anchor.adaptive != "batch_mean_raw":
            return raw
        total, count = self.world.add_numbers([float(raw[mask].double().sum()), float(mask.sum())])
        return torch.full_like(raw, total / count)

    def _step(self, number: int) -> float | None:
        """Take step ``number`` of the run: add gradients over processes, clip; returns the norm before clipping.

        None if a half-precision gradient overflowed: the scaler then leaves the weights as they are.

        Raises:
            ModelError: in other precisions, on every process, before the weights are touched.
        """
        self.world.add_gradients(self.parameters)  # first, so that an overflow anywhere is seen everywhere
        self.scaler.unscale_(self.optimizer)
        settings = self.recipe.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * settings.scale(number)
        limit = settings.clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, float("inf") if limit is None else limit)
        if not (self.scaler.is_enabled() or norm.isfinite()):
            raise ModelError(
                f"The gradient of optimiser step {number + 1} is {float(norm)}, so the step was not taken: lower "
                "optimizer.lr or look at the rewards, and continue from the last checkpoint with --resume."
            )
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return None if self.scaler.get_scale() < scale else float(norm)

    def _means(self, kept: dict[str, list[Tensor]], norms: list[float]) -> dict[str, float]:
        """Means over points, the variance ratio, and the gradient norm, equal on every process."""
        shown = torch.cat(kept.pop("imitation")) if "imitation" in kept else torch.zeros(0)
        sums = {name: float(torch.cat(values).cpu().double().sum()) for name, values in kept.items()}
        sums |= {"count": float(sum(map(len, kept["loss"]))), "shown": float(len(shown))}
        sums["imitation"] = float(shown.cpu().double().sum())
        names = sorted(set(self.world.gather_objects(list(sums))))
        total = dict(zip(names, self.world.add_numbers([sums.get(n, 0.0) for n in names]), strict=True))
        count, pictures, imitation = (total.pop(name) for name in ("count", "shown", "imitation"))
        metrics = {f"train/{name}": value / count for name, value in total.items()} if count else {}
        if pictures:
            metrics["train/imitation"] = imitation / pictures
        if total.get("target_variance"):
            metrics["train/variance_ratio"] = total["gain_variance"] / total["target_variance"]
        if norms:
            metrics["train/grad_norm"] = sum(norms) / len(norms)
        return metrics

    def state(self) -> dict[str, Any]:
        """Optimiser and scaler state for a checkpoint."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}


def _kind(point: Noised | Transition) -> dict[str, Any]:
    """The point under the name that a batch has for it."""
    return {"noised" if isinstance(point, Noised) else "transition": point}


def _in(group: Tensor, numbers: tuple[int, ...]) -> Tensor:
    return torch.isin(group, torch.tensor(numbers, dtype=group.dtype))
