"""One language run: model, data and rewards into a TRL trainer, held-out scores around it, all in a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from imgrl.analysis.watch import DriftWatch
from imgrl.anchor import Frozen
from imgrl.errors import ConfigError, ModelError, RewardError
from imgrl.recipe import as_dict
from imgrl.recipe_text import TextRecipe
from imgrl.training.distributed import World
from imgrl.training.lasting import require_same_settings
from imgrl.training.run_folder import holds_results, open_folder, read_json, replace, write_json
from imgrl.training.text import checkpoints
from imgrl.training.text.building import build
from imgrl.training.text.copies import WeightCopy
from imgrl.training.text.heldout import HeldOut
from imgrl.training.text.quiet import hush
from imgrl.training.text.rescue import save_last_step
from imgrl.training.text.sources import Sources, check_sources
from imgrl.training.tracking import Metrics, environment

if TYPE_CHECKING:
    from imgrl.training.text.rewarding import TextReward
    from imgrl.training.text.watch import Watch

__all__ = ["TextSession", "TextSummary"]


@dataclass(frozen=True, kw_only=True)
class TextSummary:
    """What a run did."""

    run_dir: str
    steps: int
    minutes: float
    before: dict[str, float]
    after: dict[str, float]
    protocol: dict[str, Any]
    interrupted: bool

    def as_dict(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


class TextSession:
    """Everything between a recipe and its summary.

    Args:
        recipe: what to run.
        tell: receives a line for the user now and then, on the main process.
    """

    world: World
    metrics: Metrics
    before: dict[str, float]
    """How the model stood before training."""

    def __init__(self, recipe: TextRecipe, *, tell: Callable[[str], None] = lambda _: None) -> None:
        self.recipe, self._tell = recipe, tell
        self.folder = open_folder(recipe.run.dir)
        self.drift: DriftWatch | None = None
        self.rewards: Sequence[TextReward] = ()
        """What scores the rollouts of an online run."""

    def tell(self, line: str) -> None:
        """Say a line, once and not on every process."""
        if self.world.main:
            self._tell(line)

    def keep(self, name: str, value: Any) -> None:
        """Write a JSON file of the run folder, on the main process."""
        if self.world.main:
            write_json(self.folder / name, value)

    def train(self, *, resume: bool = False) -> TextSummary:
        """Train to the end, or go on from the newest checkpoint."""
        from imgrl.training.text.arguments import tracked_as

        with tracked_as(self.recipe, self.folder):
            return self._train(resume)

    def _train(self, resume: bool) -> TextSummary:
        from transformers import set_seed

        from imgrl.training import launch
        from imgrl.training.text.drift import drift_watch
        from imgrl.training.text.models import load_model, load_teacher
        from imgrl.training.text.watch import Watch

        recipe, folder = self.recipe, self.folder
        launch.refuse_sharded_weights(os.environ, command="imgrl lm train")
        launch.refuse_what_launchers_undo(os.environ, recipe.model)
        hush()
        found = check_sources(recipe, processes=launch.processes())  # made in Python, nobody asked
        if not resume and holds_results(folder):
            raise ConfigError(
                f"{folder} already holds a run; continue it with `imgrl lm train --resume {folder}`, or choose "
                "another run.dir"
            )
        newest = self._newest() if resume else None
        set_seed(recipe.run.seed)
        model, tokenizer = load_model(recipe.model)
        teacher = load_teacher(recipe.model, tokenizer) if recipe.model.teacher else None
        heldout = HeldOut(
            recipe.evaluation,
            tokenizer,
            max_tokens=recipe.generation.max_tokens,
            found=(found.verifier, found.heldout),
        )
        heldout.require_room(model)
        trainer = build(recipe, found, folder, model=model, tokenizer=tokenizer, teacher=teacher)
        self.rewards = found.rewards
        self.world = World(trainer.accelerator)
        self.metrics = Metrics(folder, self.world)
        self._describe()
        self._tell_left_out(found, trainer)
        # From the weights before training, also where a run is resumed.
        self.drift, heldout.base = drift_watch(trainer.model, start=trainer.start()), self._base(trainer)
        watch = Watch(self, heldout, spent=checkpoints.seconds_of(newest))
        self._begin(trainer, watch, newest)
        self._run(trainer, watch, newest)
        return self._finish(trainer, heldout, watch)

    def _newest(self) -> Path:
        """The checkpoint to go on from, of a run that began with this recipe."""
        found = checkpoints.newest(self.folder)
        require_same_settings(self.folder / "config.yaml", self.recipe, until="run.steps")
        return found

    def _tell_left_out(self, found: Sources, trainer: Any) -> None:
        left_out = 0 if found.rewards else len(found.training) - len(trainer.train_dataset)
        if left_out:
            self.tell(
                f"{left_out} training rows are left out: the prompt alone fills data.max_tokens="
                f"{self.recipe.data.max_tokens}"
            )

    def _begin(self, trainer: Any, watch: Watch, newest: Path | None) -> None:
        """Know how the model stood before training."""
        if newest is not None:
            self.metrics.rewind(checkpoints.step_of(newest))
            self._begin_at(read_json(self.folder / "before.json"), new=False)
        elif trainer.is_fsdp_enabled:  # a model that is to be sharded waits, whole, on the CPU
            watch.at_begin = lambda model: self._begin_at(watch.heldout(model))
        else:
            self._begin_at(watch.heldout(trainer.model))

    def _begin_at(self, before: dict[str, float], *, new: bool = True) -> None:
        self.before = before
        if new:
            self.log(0, before)
            self.keep("before.json", before)
        self.tell(f"held-out pass@1 before training: {before['pass@1']:.3f}")

    def _run(self, trainer: Any, watch: Watch, newest: Path | None) -> None:
        """TRL's loop, if there is anything left to do."""
        from transformers.trainer_callback import PrinterCallback

        trainer.elapsed = watch.elapsed
        trainer.add_callback(watch)
        trainer.remove_callback(PrinterCallback)  # metrics.jsonl has those rows
        try:
            self._train_on(trainer, watch, newest)
        except (ModelError, RewardError) as error:
            self._rescue(trainer, watch, error)
            raise

    def _rescue(self, trainer: Any, watch: Watch, error: Exception) -> None:
        try:
            saved = save_last_step(trainer, watch.after_step, error)
        except OSError as disk:  # the user is to hear of what ended the run
            self.tell(f"what was trained since the last checkpoint could not be saved ({disk})")
            return
        if saved is not None:
            self.tell(f"what was trained is kept in {saved}; continue with --resume {self.folder}")

    def _train_on(self, trainer: Any, watch: Watch, newest: Path | None) -> None:
        if newest is None:
            trainer.train()
        elif watch.out_of_time() or checkpoints.step_of(newest) >= self.recipe.run.steps:
            trainer.stand_at(newest)  # TRL would take a step before it asked whether to stop
        else:
            trainer.train(resume_from_checkpoint=str(newest))

    def _finish(self, trainer: Any, heldout: HeldOut, watch: Watch) -> TextSummary:
        before, step = self.before, trainer.state.global_step
        after = watch.last[1] if watch.last and watch.last[0] == step else heldout(trainer.model)
        if not (watch.last and watch.last[0] == step):
            self.log(step, after)
        trainer.save_model(str(self.folder / "model"))
        if self.world.main:
            trainer.processing_class.save_pretrained(str(self.folder / "model"))
        spec = self.recipe.evaluation
        summary = TextSummary(
            run_dir=str(self.folder),
            steps=step,
            minutes=round(watch.elapsed() / 60, 2),
            before=before,
            after=after,
            protocol=as_dict(spec) | {"max_tokens": self.recipe.generation.max_tokens},
            interrupted=watch.interrupted,
        )
        self.keep("summary.json", summary.as_dict())
        self.tell(
            f"held-out pass@1 after {step} {'step' if step == 1 else 'steps'}: {after['pass@1']:.3f} "
            f"(before: {before['pass@1']:.3f})"
        )
        return summary

    def _base(self, trainer: Any) -> WeightCopy | None:
        """The model before training, if it is asked for or keeping it costs no second copy of all weights."""
        if self.recipe.model.train == "lora":
            return trainer.anchors.get("initial") or WeightCopy(trainer.model)
        moves = (
            self.recipe.anchor != Frozen()
            or getattr(self.recipe.objective, "reincarnate_at", None) is not None
        )
        kept = None if moves else trainer.anchors.get("base")
        return WeightCopy(trainer.model) if kept is None and self.recipe.evaluation.kl else kept

    # -------------------------------------------------------------- writing

    def _describe(self) -> None:
        if self.world.main:
            recipe = yaml.safe_dump(as_dict(self.recipe), sort_keys=False, allow_unicode=True)
            replace(self.folder / "config.yaml", recipe)
        self.keep("environment.json", environment(self.world))

    def log(self, step: int, heldout: Mapping[str, float], more: Mapping[str, float] | None = None) -> None:
        """A row of ``metrics.jsonl``."""
        self.metrics.log(step, {**(more or {}), **{f"heldout/{name}": v for name, v in heldout.items()}})
