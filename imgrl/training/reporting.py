"""What a training run tells its caller while it runs, and the summary it ends with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

__all__ = ["Reporter", "Silent", "Summary"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended; written to ``summary.json``."""

    run_dir: str
    rounds: int
    """Rounds done, those before a resume included."""
    minutes: float
    """Training time, evaluation not counted."""
    before: Mapping[str, float] = field(default_factory=dict)
    """Scores of the base model, such as ``heldout/shapes@10``."""
    after: Mapping[str, float] = field(default_factory=dict)
    """The same scores of the trained weights."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """How the scores were made: prompts, images a prompt, steps, guidance, seed, weights."""
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time by phase: of the rounds rollout, decode, reward, points (noised latents), update, blend, learn (rewards
    that learn), other; beside them evaluation, checkpoint and export."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """What was written, by name: lora, metrics, checkpoint, grids."""
    interrupted: bool = False
    """Whether Ctrl-C ended it early."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, ready for JSON."""
        return asdict(self)


class Reporter(Protocol):
    """Receives the progress of a run; called on the main process only.

    Metrics of ``round_end`` are plain numbers; ``reward`` is the round's mean combined reward. Results of
    ``evaluation`` are named like ``heldout/shapes`` and are plain numbers as well.
    """

    def start(self, recipe: Any, total_rounds: int) -> None:
        """The run begins; ``total_rounds`` is where it will stop unless time runs out first."""
        ...

    def phase(self, name: str) -> None:
        """A phase begins: rollout, decode, reward, update, evaluation, checkpoint ..."""
        ...

    def round_end(self, round: int, metrics: Mapping[str, float]) -> None:
        """Round number ``round`` (from 1) is complete."""
        ...

    def evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """The held-out score after ``step`` rounds; step 0 is the base model."""
        ...

    def message(self, text: str) -> None:
        """Something worth one line."""
        ...

    def finish(self, summary: Summary) -> None:
        """The run is over and everything is written."""
        ...


class Silent:
    """A reporter that says nothing; the default of the Python interface."""

    def start(self, recipe: Any, total_rounds: int) -> None:
        """Ignore the start."""

    def phase(self, name: str) -> None:
        """Ignore the phase."""

    def round_end(self, round: int, metrics: Mapping[str, float]) -> None:
        """Ignore the round."""

    def evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Ignore the scores."""

    def message(self, text: str) -> None:
        """Ignore the message."""

    def finish(self, summary: Summary) -> None:
        """Ignore the summary."""
