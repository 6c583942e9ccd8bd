"""Held-out scores during a run: a fixed protocol on prompts that training never sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from imgrl.analysis.watch import DriftWatch
from imgrl.evaluation.diversity import group_distances
from imgrl.evaluation.drift import velocity_norm_ratios
from imgrl.evaluation.grid import save_grid
from imgrl.evaluation.protocol import Protocol, generate
from imgrl.evaluation.shapes import judgeable, score_images, summarise
from imgrl.policies.lora import LoraWeights
from imgrl.training.phases import Phases
from imgrl.training.run_folder import replace
from imgrl.training.setup import Parts
from imgrl.types import Prompt

__all__ = ["HeldOut", "warnings_of"]

_DRIFT_IMAGES = 64  # noised points of the velocity norm
_MOST_GROWTH = 1.5  # of velocities: runs that held stayed below 1.3, runs that collapsed went through here


def warnings_of(scores: Mapping[str, float]) -> list[str]:
    """What to tell the user of held-out figures: a policy whose velocities grow is about to be torn apart."""
    grown = scores.get("heldout/velocity_norm", 1.0)
    if grown <= _MOST_GROWTH:
        return []
    return [
        f"velocities have grown to {grown:.2f} times the pretrained model's: the policy is drifting off; lower the "
        "learning rate, raise the anchor's weight, or go back to an earlier checkpoint"
    ]


class HeldOut:
    """Scores the policy on ``evaluation.prompts``; every process makes a part of the images."""

    def __init__(self, parts: Parts, phases: Phases) -> None:
        self.parts, self.phases, self.settings = parts, phases, parts.recipe.evaluation
        self._watch = self._watched() if self.settings.weight_drift and parts.world.main else None

    def scores(self, round: int, steps: tuple[int, ...]) -> dict[str, float]:
        """Every held-out figure after ``round`` rounds; the first of ``steps`` also under its bare name."""
        results: dict[str, float] = {}
        with self.phases("evaluation"):
            for count in steps:
                found = self._scores_at(round, count, first=count == steps[0])
                results |= {f"heldout/{name}@{count}": value for name, value in found.items()}
                if count == steps[0]:
                    results |= {f"heldout/{name}": value for name, value in found.items()}
        return results

    def drift(self) -> dict[str, float]:
        """How far the evaluated weights are from where they began, on the main process, if the recipe asks for it."""
        if self._watch is None:
            return {}
        with self.phases("evaluation"):
            return self._watch.measure()

    def _watched(self) -> DriftWatch:
        """From the weights before training: a resumed run loads its checkpoint only later."""
        weights, name, most = self.parts.policy.weights, self.settings.weights, self.settings.weight_drift
        if not isinstance(weights, LoraWeights):
            return DriftWatch(weights.tensors(name).items(), most=most)

        if weights.mask is not None:  # its change has no factors
            return DriftWatch(
                weights.stored().items(), most=most, now=lambda path: weights.changed(name, path)
            )

        def update(path: str) -> tuple[Tensor, Tensor]:
            a, b = (weights.factors(name)[f"{path}.lora_{part}.weight"] for part in "AB")
            return b * weights.scaling, a

        return DriftWatch(weights.stored().items(), most=most, update=update)

    def protocol(self) -> dict[str, Any]:
        """How the figures are made, for the summary."""
        settings, recipe = self.settings, self.parts.recipe
        return {
            "prompts": settings.prompts,
            "count": len(self.parts.heldout),
            "images_per_prompt": settings.images_per_prompt,
            "steps": list(settings.steps),
            "solver": settings.solver,
            "guidance": settings.guidance,
            "weights": settings.weights,
            "seed": settings.seed,
            "noise": "by prompt",  # by row until 2026-11-26: such figures are of other noise
            "model": recipe.model.path,
            "dtype": recipe.model.dtype,
            "vae_dtype": recipe.model.vae_dtype,
            "max_sequence_length": recipe.model.max_sequence_length,
        }

    def _scores_at(self, round: int, steps: int, *, first: bool) -> dict[str, float]:
        parts, settings, world = self.parts, self.settings, self.parts.world
        per, batch = settings.images_per_prompt, self._batch
        mine = torch.arange(len(parts.heldout))[
            world.rank :: world.size
        ]  # whole prompts: groups stay together
        rows = (per * mine[:, None] + torch.arange(per)).flatten()
        protocol = Protocol(
            images_per_prompt=per,
            steps=steps,
            guidance=settings.guidance,
            seed=settings.seed,
            solver=settings.solver,
            weights=settings.weights,
            batch=batch,
            height=parts.recipe.model.height,
            width=parts.recipe.model.width,
        )
        images = generate(parts.policy, parts.heldout, protocol, rows=rows.tolist()).cpu()
        prompts = [parts.heldout[int(row) // per] for row in rows]
        results = self._reward_means(images, prompts, rows)
        if judgeable(parts.heldout):
            results |= self._shapes(images, prompts)
        if per > 1:
            results["diversity"] = self._diversity(images, rows // per)
        if first:
            if "frozen" in parts.policy.weights.names:
                results["velocity_norm"] = self._velocity_norm(images, prompts, rows)
            if world.main and settings.grid:
                self._grid(round, images, prompts)
        return results

    def _reward_means(self, images: Tensor, prompts: list[Prompt], rows: Tensor) -> dict[str, float]:
        """Mean raw value of every reward over the images that it applies to."""
        world = self.parts.world
        group = rows // self.settings.images_per_prompt
        scores = self.parts.rewards.score(images, prompts, group=group, share=True)
        count = len(self.parts.heldout) * self.settings.images_per_prompt
        self.parts.rewards.check_failures(world.add_counts(scores.failures), count)
        means = {}
        for name, values in scores.values.items():
            good = values[~values.isnan()].double()
            total, number = world.add_numbers([float(good.sum()), float(len(good))])
            if number:
                means[name] = total / number
        return means

    def _shapes(self, images: Tensor, prompts: list[Prompt]) -> dict[str, float]:
        """ShapeEval, whose official score takes the name of the training reward, which gives partial credit."""
        verdicts = self.parts.world.gather_objects(score_images(images, prompts))
        return summarise(verdicts)

    def _diversity(self, images: Tensor, group: Tensor) -> float:
        """Mean pairwise distance inside prompts, over all processes."""
        distances = group_distances(images, group)
        total, count = self.parts.world.add_numbers([sum(distances), float(len(distances))])
        return total / count

    def _velocity_norm(self, images: Tensor, prompts: list[Prompt], rows: Tensor) -> float:
        """Length of the measured weights' velocity over the frozen one; far above or below 1 is drift.

        Of the first images of the whole set, whichever process has them; ``rows`` are their numbers in it.
        """
        policy, settings = self.parts.policy, self.settings
        count = min(_DRIFT_IMAGES, len(self.parts.heldout) * settings.images_per_prompt)
        here = [place for place, row in enumerate(rows.tolist()) if row < count]
        ratios = torch.zeros(0)
        if here:
            ratios = velocity_norm_ratios(
                policy,
                policy.to_latents(images[here], batch=self._batch),
                policy.encode([prompts[place].text for place in here]),
                policy.sigmas(8),
                seed=settings.seed,
                weights=settings.weights,
                points=rows[here],
                total=count,
                batch=self._batch,
            )
        total, number = self.parts.world.add_numbers([float(ratios.sum()), float(len(ratios))])
        return total / number

    @property
    def _batch(self) -> int:
        """Images a forward pass."""
        return self.settings.batch or self.parts.recipe.rollout.batch or 64

    def _grid(self, round: int, images: Tensor, prompts: list[Prompt]) -> None:
        """One row a prompt from all over the set (which may be sorted), at the seeds of every other evaluation.

        Their prompts stand beside it in ``prompts.txt``, a line a row.
        """
        per = self.settings.images_per_prompt
        by_prompt = images.unflatten(0, (-1, per))
        shown = torch.linspace(0, len(by_prompt) - 1, min(self.settings.grid, len(by_prompt))).round().long()
        folder = self.parts.folder / "grids"
        save_grid(by_prompt[shown].flatten(0, 1), folder / f"round-{round:05d}.png", columns=per)
        lines = [" ".join(prompts[per * int(row)].text.split()) + "\n" for row in shown]
        replace(folder / "prompts.txt", "".join(lines))
