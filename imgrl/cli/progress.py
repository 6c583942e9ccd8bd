"""Live progress of a training run, and the same in plain lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from imgrl.cli.common import screen
from imgrl.training.phases import BESIDE_TRAINING, NETWORK
from imgrl.training.reporting import Summary

__all__ = ["PlainReporter", "RichReporter", "phase_table", "score_table"]


class _Pace:
    """How far a run is and how long it will take, by rounds or by the time it was given."""

    def __init__(self, recipe: Any, total: int) -> None:
        self.total, self.minutes = total, recipe.run.minutes
        self.round = self.first = 0
        self.began = time.monotonic()
        self.paused = 0.0  # seconds that do not count against run.minutes
        self._pause: float | None = None

    def phase(self, name: str) -> None:
        """Stop the clock during what is not training."""
        now = time.monotonic()
        if self._pause is not None:
            self.paused, self._pause = self.paused + now - self._pause, None
        if name in BESIDE_TRAINING:
            self._pause = now

    def advance(self, number: int) -> None:
        """Round ``number`` is done."""
        if not self.round:
            self.first = number - 1  # of a resumed run
        self.round = number

    @property
    def seconds(self) -> float:
        """Training seconds so far."""
        waiting = 0.0 if self._pause is None else time.monotonic() - self._pause
        return time.monotonic() - self.began - self.paused - waiting

    @property
    def fraction(self) -> float:
        """Part of the run that is done, 0 to 1."""
        by_time = self.seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_time, self.round / self.total))

    @property
    def left(self) -> str:
        """Estimated time to the end."""
        done = self.round - self.first
        if not done:
            return "-:--"
        seconds = (self.total - self.round) * self.seconds / done
        if self.minutes:
            seconds = min(seconds, max(0.0, 60 * self.minutes - self.seconds))
        return _clock(seconds)


class RichReporter:
    """A live bar with phase, round, reward, held-out score and time left; tables at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or screen(stderr=True)
        self._pace: _Pace | None = None
        self._live: Live | None = None
        self._phase, self._reward, self._scores = "starting", None, {}

    def start(self, recipe: Any, total_rounds: int) -> None:
        """Show the bar."""
        self._pace = _Pace(recipe, total_rounds)
        self.console.print(
            f"imgrl trains [bold]{recipe.model.path}[/] with {recipe.objective.name}, in {recipe.run.dir}"
        )
        live = Live(console=self.console, get_renderable=self._draw, refresh_per_second=4, transient=True)
        live.start()
        self._live = live

    def phase(self, name: str) -> None:
        """Show the phase."""
        self._phase = name
        if self._pace is not None:
            self._pace.phase(name)

    def round_end(self, round: int, metrics: Mapping[str, float]) -> None:
        """Move the bar."""
        if self._pace is not None:
            self._pace.advance(round)
        self._reward = metrics.get("reward")

    def evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Keep the scores in view and leave a line behind."""
        self._scores = dict(results)
        self.console.print(f"after {step:4d} rounds  {_numbers(results)}")

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(Text(text))

    def finish(self, summary: Summary) -> None:
        """Replace the bar by the tables."""
        self.close()
        self.console.print(phase_table(summary))
        self.console.print(Panel(_summary(summary), title="summary", expand=False))

    def close(self) -> None:
        """Take the bar away; safe to call twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self) -> Any:
        pace = self._pace
        if pace is None:
            return Text(self._phase)
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=40), TextColumn("{task.fields[left]} left")
        )
        bar.add_task(
            f"round {pace.round}/{pace.total}",
            total=1000,
            completed=round(1000 * pace.fraction),
            left=pace.left,
        )
        reward = "-" if self._reward is None else f"{self._reward:.3f}"
        return Group(bar, Text(f"{self._phase:<12} reward {reward}   {_numbers(self._scores)}"))


class PlainReporter:
    """One line a round, without control characters."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or screen()
        self._pace: _Pace | None = None

    def start(self, recipe: Any, total_rounds: int) -> None:
        """Say what runs where."""
        self._pace = _Pace(recipe, total_rounds)
        self._line(f"imgrl trains {recipe.model.path} with {recipe.objective.name}, in {recipe.run.dir}")

    def phase(self, name: str) -> None:
        """Keep time."""
        if self._pace is not None:
            self._pace.phase(name)

    def round_end(self, round: int, metrics: Mapping[str, float]) -> None:
        """Print the round."""
        assert self._pace is not None
        self._pace.advance(round)
        reward = f"  reward {metrics['reward']:.3f}" if "reward" in metrics else ""
        self._line(f"round {round}/{self._pace.total}{reward}  {self._pace.left} left")

    def evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Print the scores."""
        self._line(f"after {step} rounds  {_numbers(results)}")

    def message(self, text: str) -> None:
        """Print the line."""
        self._line(text)

    def finish(self, summary: Summary) -> None:
        """Print the tables."""
        self.console.print(phase_table(summary))
        self.console.print(_summary(summary))

    def _line(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


def phase_table(summary: Summary) -> Table:
    """Where the time went; shares are of training time, of which network, VAE and reward should have nearly all."""
    table = Table(title="time by phase", title_justify="left")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    table.add_column("of training", justify="right")
    total = 60 * summary.minutes or 1.0
    for name, seconds in sorted(summary.phase_seconds.items(), key=lambda item: -item[1]):
        share = "" if name in BESIDE_TRAINING else f"{seconds / total:.1%}"
        table.add_row(name, f"{seconds:.1f}", share)
    inside = sum(summary.phase_seconds.get(name, 0.0) for name in NETWORK)
    table.add_row("network, VAE and reward", f"{inside:.1f}", f"{inside / total:.1%}")
    return table


def score_table(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Scores before and after, side by side."""
    table = Table()
    for column, justify in (("score", "left"), ("before", "right"), ("after", "right"), ("change", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name in _once((*before, *after)):
        first, last = before.get(name), after.get(name)
        change = "-" if first is None or last is None else f"{last - first:+.3f}"
        table.add_row(
            name, "-" if first is None else f"{first:.3f}", "-" if last is None else f"{last:.3f}", change
        )
    return table


def _summary(summary: Summary) -> Group:
    end = "interrupted after" if summary.interrupted else "done:"
    lines: list[Any] = [Text(f"{end} {summary.rounds} rounds, {summary.minutes:.1f} minutes of training")]
    if summary.before or summary.after:
        lines.append(score_table(summary.before, summary.after))
    if summary.protocol:
        lines.append(
            Text("protocol: " + ", ".join(f"{key} {value}" for key, value in summary.protocol.items()))
        )
    lines.append(Text(f"run folder: {summary.run_dir}"))
    lines.extend(Text(f"{name}: {path}") for name, path in summary.paths.items())
    return Group(*lines)


def _numbers(results: Mapping[str, float]) -> str:
    bare = {key: value for key, value in results.items() if "@" not in key} or results
    return "  ".join([f"{key} {value:.3f}" for key, value in bare.items()][:4])


def _once(names: Iterable[str]) -> list[str]:
    """The names in their order, without those that repeat a ``name@steps`` under the bare name."""
    names = list(dict.fromkeys(names))
    exact = {name.split("@")[0] for name in names if "@" in name}
    return [name for name in names if name not in exact]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
