"""The one loop for image models: rollout, rewards, advantages, update, blend.

Algorithms differ by their objective alone (``imgrl/objectives/image``); nothing here knows which one runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from imgrl.errors import BudgetError
from imgrl.recipe import Recipe
from imgrl.training import run_folder
from imgrl.training.distributed import World
from imgrl.training.faults import faults_of, note_faults
from imgrl.training.heldout import HeldOut, warnings_of
from imgrl.training.interrupt import Interrupt
from imgrl.training.learning import Alarms, learn_from
from imgrl.training.phases import Phases
from imgrl.training.reporting import Reporter, Silent, Summary
from imgrl.training.rollout import Rollout, advantages_of, collect
from imgrl.training.setup import Parts, prepare
from imgrl.training.state import Progress, restore, save
from imgrl.training.tracking import Metrics
from imgrl.training.update import UpdateResult

__all__ = ["Trainer"]


class Trainer:
    """Trains a text-to-image policy against rewards.

    Example:
        ``Trainer(Recipe(rewards={"bright": my_function}, run=Run(dir="runs/bright"))).train()``
    """

    def __init__(self, recipe: Recipe, *, reporter: Reporter | None = None) -> None:
        self.recipe = recipe
        self.reporter: Reporter = reporter or Silent()
        self.phases = Phases()
        self.round = 0
        """Rounds done."""
        self.step = 0
        """Optimiser steps done; schedules count these."""
        self.seconds = 0.0
        """Training time, evaluation and checkpoints not counted, over all sessions of the run."""

    def train(self, *, resume: bool = False) -> Summary:
        """Run to the last round or minute, or to the end of the round in which Ctrl-C came.

        Args:
            resume: continue from the newest checkpoint of ``run.dir``.

        Raises:
            ImgrlError: in one sentence, for anything that cannot run; before the first round where it can be known.
        """
        parts = prepare(self.recipe, resume=resume)
        reporter = self.reporter if parts.world.main else Silent()
        self.phases = Phases(reporter.phase)
        self.metrics = Metrics(parts.folder, parts.world)
        self.alarms = Alarms(alternating=parts.rewards.learners.alternating)
        self.heldout = HeldOut(parts, self.phases)
        parts.updater.phases = self.phases
        if resume:
            done = restore(parts)
            self.round, self.step, self.seconds = done.round, done.step, done.seconds
            self.phases.seconds.update(done.phases)
            self.metrics.rewind(self.round)
            self.alarms.replay(self.metrics.rows())
        reporter.start(self.recipe, self.recipe.run.rounds)
        for message in parts.messages:
            reporter.message(message)
        before = self._before(parts, reporter)
        with Interrupt() as interrupt:
            self._imitate_first(parts, reporter, interrupt)
            while not (self._done() or parts.world.any(interrupt.asked)):
                self._round(parts, reporter)
            summary = self._finish(parts, before, reporter, interrupted=not self._done())
        reporter.finish(summary)
        return summary

    def _imitate_first(self, parts: Parts, reporter: Reporter, interrupt: Interrupt) -> None:
        """The optimiser steps that pictures get before the first round; the copies then begin where these end."""
        steps, world, losses = self.recipe.imitation.steps, parts.world, list[float]()
        if parts.updater.imitated is None or self.round or self.step >= steps:
            return
        while self.step < steps and not (self._done() or world.any(interrupt.asked)):
            start = time.perf_counter()
            losses.append(parts.updater.imitate(self.step))
            self.step += 1
            self.seconds += world.first(time.perf_counter() - start)
        for name in parts.copies:
            parts.policy.weights.blend(name, 0.0)
        if losses:
            reporter.message(
                f"{self.step} of {steps} steps on pictures alone: loss {losses[0]:.3f} to {losses[-1]:.3f}"
            )
            self.metrics.log(0, {"optimizer_steps": float(self.step), "train/imitation": losses[-1]})

    def _round(self, parts: Parts, reporter: Reporter) -> None:
        """One round, as the architecture page draws it."""
        start, recipe, world = time.perf_counter(), self.recipe, parts.world
        rollout = self._collected(parts)
        advantages, mine = advantages_of(rollout, recipe=recipe, world=world)
        waits = parts.rewards.learners.waiting
        result = UpdateResult(steps=0, metrics={})
        if not waits:
            result = parts.updater.run(rollout, advantages, mine, round=self.round, step=self.step)
        self.step += result.steps
        with self.phases("blend"):
            decays = self._blend(parts, result)
        with self.phases("learn"):  # after scoring: all images of a round are judged by one discriminator
            learned = learn_from(rollout, parts.rewards, world, waited=waits)
        self.round += 1
        self.seconds += world.first(time.perf_counter() - start)
        row = self._row(rollout, advantages, result, world) | decays | learned
        reporter.round_end(self.round, row)
        faults, images = faults_of(rollout, parts.rewards), recipe.batch.images
        for told in note_faults(faults, self.metrics, round=self.round, samples=images, kind="images"):
            reporter.message(told)
        if not advantages.valid.any():
            reporter.message(
                f"round {self.round} taught nothing: no image got a score, as the rewards failed"
            )
        for alarm in self.alarms(row):
            reporter.message(alarm)
        if due(self.round, recipe.evaluation.every) and not self._done():
            try:
                scores = self.heldout.scores(self.round, recipe.evaluation.steps[:1])
            except BudgetError:
                self.metrics.log(self.round, row)
                self._save(parts)  # a judge that died costs nothing that was trained
                raise
            self._show(reporter, scores)
            row |= scores | self.heldout.drift()
        self.metrics.log(self.round, row)
        if due(self.round, recipe.checkpoint.every) and not self._done():
            self._save(parts)

    def _collected(self, parts: Parts) -> Rollout:
        """The next round's rollout; where rewards fail beyond the budget, everything trained until then is saved."""
        cursor = parts.sampler.state_dict()
        prompts = [parts.prompts[i] for i in parts.sampler.next_round()]
        try:
            return collect(
                parts.policy,
                parts.rewards,
                prompts,
                recipe=self.recipe,
                round=self.round,
                world=parts.world,
                phases=self.phases,
            )
        except BudgetError:
            if self.step:
                parts.sampler.load_state_dict(cursor)  # the round is to be made again
                self._save(parts)
            raise

    def _show(self, reporter: Reporter, scores: Mapping[str, float]) -> None:
        reporter.evaluation(self.round, scores)
        for warning in warnings_of(scores):
            reporter.message(warning)

    def _blend(self, parts: Parts, result: UpdateResult) -> dict[str, float]:
        """Let the copies follow the trained weights; returns the decays used."""
        weights, objective = parts.policy.weights, self.recipe.objective
        decays: dict[str, float] = {}
        if result.steps:
            if "old" in parts.copies:
                decays["old"] = objective.old(self.step)
            if objective.sampling is not None:
                decays["sampling"] = objective.sampling(self.step)
            if self.recipe.evaluation.ema is not None:
                decays["ema"] = self.recipe.evaluation.ema**result.steps
        for name, decay in decays.items():
            weights.blend(name, decay)
        return {f"decay/{name}": decay for name, decay in decays.items()}

    def _row(self, rollout: Rollout, advantages: Any, result: UpdateResult, world: World) -> dict[str, float]:
        """What is logged of a round: means over all images of all processes."""
        scores, groups = rollout.scores, self.recipe.batch.groups
        row = {"reward": _mean(scores.total, world)}
        row |= {f"reward/{name}": _mean(values, world) for name, values in scores.values.items()}
        row |= {f"reward/{name}/failed": float(missed) for name, missed in rollout.failures.items()}
        row |= {
            "reward/failed": float(sum(rollout.failures.values())),
            "groups/zero_variance": len(advantages.zero_variance_groups) / groups,
            "groups/dropped": len(advantages.dropped_groups) / groups,
            "reward/masked": 1 - float(advantages.valid.double().mean()),
            "images": float(self.recipe.batch.images * self.round),
            "optimizer_steps": float(self.step),
            "minutes": self.seconds / 60,
        }
        row |= result.metrics
        row |= {f"seconds/{name}": seconds for name, seconds in self.phases.seconds.items()}
        return row

    def _done(self) -> bool:
        minutes = self.recipe.run.minutes
        return self.round >= self.recipe.run.rounds or (minutes is not None and self.seconds >= 60 * minutes)

    def _before(self, parts: Parts, reporter: Reporter) -> dict[str, float]:
        """Scores of the base model: measured at the start, read back on resume."""
        file = parts.folder / "before.json"
        if (self.round or self.step) and file.exists():
            return run_folder.read_json(file)
        scores = self.heldout.scores(0, self.recipe.evaluation.steps)
        reporter.evaluation(0, scores)
        self.metrics.rewind(-1)
        self.metrics.log(0, scores)
        if parts.world.main:
            run_folder.write_json(file, scores)
        return scores

    def _save(self, parts: Parts) -> Path | None:
        with self.phases("checkpoint"):
            progress = Progress(
                round=self.round, step=self.step, seconds=self.seconds, phases=dict(self.phases.seconds)
            )
            return save(parts, progress)

    def _finish(
        self, parts: Parts, before: dict[str, float], reporter: Reporter, *, interrupted: bool
    ) -> Summary:
        """Save, score, export and sum up; an interrupted run only saves, and can be resumed."""
        checkpoint = self._save(parts)
        after: dict[str, float] = {}
        if not interrupted:
            after = self.heldout.scores(self.round, self.recipe.evaluation.steps)
            self._show(reporter, after)
            self.metrics.forget_final(self.round)
            self.metrics.log(self.round, {"final": 1.0, **after, **self.heldout.drift()})
        paths = {"run": str(parts.folder), "metrics": str(self.metrics.file), "checkpoint": str(checkpoint)}
        if parts.world.main and not interrupted:
            with self.phases("export"):
                made = "lora" if self.recipe.model.leaves_lora else "model"
                manifest = parts.policy.export(parts.folder / made, weights=self.recipe.evaluation.weights)
            reporter.message(manifest_line(manifest))
            paths |= {made: str(parts.folder / made), "grids": str(parts.folder / "grids")}
        parts.world.accelerator.end_training()
        summary = Summary(
            run_dir=str(parts.folder),
            rounds=self.round,
            minutes=self.seconds / 60,
            before=before,
            after=after,
            protocol=self.heldout.protocol(),
            phase_seconds=self.phases.of_training(self.seconds) | self.phases.beside_training(),
            paths=paths,
            interrupted=interrupted,
        )
        if parts.world.main:
            run_folder.write_json(parts.folder / "summary.json", summary.as_dict())
        return summary


def due(round: int, every: int) -> bool:
    """Whether something that happens every so many rounds happens after this one; never for 0."""
    return every > 0 and round % every == 0


def manifest_line(manifest: Any) -> str:
    """What the export says of itself in one line."""
    if manifest.velocity_error is None:
        return f"exported without a check against stock diffusers. {manifest.unverified or ''}".rstrip(" .")
    return f"exported; a fresh stock pipeline reproduces its velocity to {manifest.velocity_error:.1e}"


def _mean(values: torch.Tensor, world: World) -> float:
    """Mean over the finite values of all processes."""
    good = values[~values.isnan()].cpu().double()
    total, count = world.add_numbers([float(good.sum()), float(len(good))])
    return total / count if count else math.nan
