"""The callbacks of a language run. Imports transformers at the top: import this module inside functions only."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from imgrl.anchor import Anchor
from imgrl.objectives.text.base import passes_of
from imgrl.training.faults import note_faults
from imgrl.training.text.copies import WeightCopy
from imgrl.training.text.heldout import HeldOut
from imgrl.training.text.rescue import StepState

if TYPE_CHECKING:
    from imgrl.training.text.session import TextSession

__all__ = ["Follow", "Watch"]


class Watch(TrainerCallback):
    """Logs every step, evaluates, and stops by the clock or on Ctrl-C after the step.

    Args:
        session: whose recipe says when, and whose metrics receive the rows.
        heldout: the evaluation.
        spent: seconds that earlier sessions of the run have trained.
    """

    def __init__(self, session: TextSession, heldout: HeldOut, *, spent: float) -> None:
        self.session, self.heldout = session, heldout
        self.interrupted = False
        self.last: tuple[int, dict[str, float]] | None = None
        self._spent = spent
        self._since: float | None = None
        self.at_begin: Callable[[Any], None] = lambda model: None
        """What else to do with the model when training begins; not counted as training."""
        self.after_step: StepState | None = None
        """As things stood right after the last step."""

    def elapsed(self) -> float:
        """Seconds of training over all sessions of the run, evaluation not counted."""
        return self._spent + (0.0 if self._since is None else time.monotonic() - self._since)

    def out_of_time(self) -> bool:
        """Whether ``run.minutes`` are used up."""
        limit = self.session.recipe.run.minutes
        return limit is not None and self.elapsed() >= 60 * limit

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Start the clock."""
        self.at_begin(model)
        self._since = time.monotonic()
        self._old = signal.signal(signal.SIGINT, self._stop)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it."""
        self._spent, self._since = self.elapsed(), None
        signal.signal(signal.SIGINT, self._old)

    def _stop(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.session.tell("finishing the step; press Ctrl-C again to stop at once")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any
    ) -> None:
        """A row of ``metrics.jsonl`` and a line for the user after each step, then an evaluation where it is due.

        In this order, so that a verifier that dies does not take the step's row with it.
        """
        numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        if "loss" in numbers:
            self.session.log(state.global_step, {}, numbers)
            self._note_faults(state.global_step)
            name, digits = ("reward", 3) if "reward" in numbers else ("loss", 4)
            self.session.tell(
                f"step {state.global_step}/{state.max_steps}  {name} {numbers[name]:.{digits}f}"
            )
            if silent := [own.reward.name for own in self.session.rewards]:
                if all(numbers.get(f"rewards/{name}/none") == 1 for name in silent):
                    self.session.tell(f"step {state.global_step}: no reward applied to any completion")
            every = self.session.recipe.evaluation.every
            if every and state.global_step % every == 0:
                self._evaluate(state.global_step, model)

    def _note_faults(self, step: int) -> None:
        session = self.session
        for own in session.rewards:
            fault = own.take_fault()
            if fault is None:
                continue
            for told in note_faults(
                [fault], session.metrics, round=step, samples=own.asked, kind="completions", unit="step"
            ):
                session.tell(told)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the run where it is time."""
        session, self.after_step = self.session, StepState(state)
        if state.global_step == state.max_steps:  # with checkpoint.every=0 the only one
            control.should_save = True
        block_ends = state.global_step % passes_of(session.recipe.objective) == 0
        if block_ends and session.world.any(self.interrupted or self.out_of_time()):
            control.should_training_stop = True
            control.should_save = True

    def _evaluate(self, step: int, model: Any) -> None:
        self._spent, self._since = self.elapsed(), None  # the clock stands still
        session = self.session
        scores = self.heldout(model)
        self.last = (step, scores)
        moved = {} if session.drift is None else session.drift.measure()
        session.log(step, scores, moved)
        session.tell(f"step {step}: held-out pass@1 {scores['pass@1']:.3f}")
        self._since = time.monotonic()


class Follow(TrainerCallback):
    """Moves an anchor after each optimiser step, and before the checkpoint that may be written there."""

    def __init__(self, anchor: WeightCopy, rule: Anchor) -> None:
        self.anchor, self.rule = anchor, rule

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """What the rule says of this step."""
        self.anchor.follow(getattr(model, "module", model), self.rule.decay(state.global_step))
