"""What the reporters show."""

import io

import pytest
from rich.console import Console

from imgrl.cli import progress
from imgrl.cli.progress import PlainReporter, RichReporter
from imgrl.recipe import Recipe, Run
from imgrl.training.reporting import Summary

SUMMARY = Summary(
    run_dir="runs/x",
    rounds=2,
    minutes=1.5,
    before={"heldout/shapes@10": 0.42},
    after={"heldout/shapes@10": 0.67},
    protocol={"images per prompt": 4},
    phase_seconds={"update": 30.0, "rollout": 50.0, "reward": 5.0, "other": 5.0, "evaluation": 40.0},
    paths={"lora": "runs/x/lora"},
)


def console(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def play(reporter):
    reporter.start(Recipe(run=Run(dir="runs/x")), 2)
    reporter.phase("evaluation")
    reporter.evaluation(0, {"heldout/shapes": 0.42})
    for number in (1, 2):
        reporter.phase("rollout")
        reporter.round_end(number, {"reward": 0.5 * number})
    reporter.message("LoRA [verified]")
    reporter.finish(SUMMARY)
    return reporter.console.file.getvalue()


def test_plain_is_one_line_a_round_without_control_characters():
    text = play(PlainReporter(console(terminal=False)))
    assert "\x1b" not in text and "\r" not in text
    lines = text.splitlines()
    assert sum(line.startswith("round ") for line in lines) == 2
    assert any(line.startswith("round 2/2  reward 1.000  0:00 left") for line in lines)


@pytest.mark.parametrize("kind", [PlainReporter, RichReporter])
def test_both_end_with_time_by_phase_and_the_scores(kind):
    text = play(kind(console(terminal=False)))
    for part in (
        "heldout/shapes@10",
        "0.420",
        "0.670",
        "+0.250",
        "55.6%",
        "94.4%",
        "runs/x/lora",
        "LoRA [verified]",
    ):
        assert part in text
    table = text[text.index("time by phase") :]
    assert table.index("rollout") < table.index("update") < table.index("reward")  # the longest first
    assert next(line for line in table.splitlines() if "evaluation" in line).count("%") == 0


def test_a_score_under_two_names_is_shown_once():
    """Evaluations name the first sampler's figure twice, as heldout/x and heldout/x@10."""
    scores = {"heldout/x@10": 0.25, "heldout/x": 0.25, "heldout/x@40": 0.5}
    out = console(terminal=False)
    out.print(progress.score_table(scores, {}))
    text = out.file.getvalue()
    assert text.count("heldout/x") == 2 and "heldout/x@10" in text and "heldout/x@40" in text
    assert progress._numbers(scores) == "heldout/x 0.250"


def test_the_bar_shows_phase_round_reward_and_score():
    reporter = RichReporter(console(terminal=False))
    reporter.start(Recipe(), 10)
    reporter.evaluation(0, {"heldout/shapes": 0.4})
    reporter.phase("update")
    reporter.round_end(3, {"reward": 0.25})
    reporter.console.file.truncate(0)
    reporter.console.print(reporter._draw())
    reporter.close()
    reporter.close()
    text = reporter.console.file.getvalue()
    for part in ("round 3/10", "update", "reward 0.250", "heldout/shapes 0.400", "left"):
        assert part in text


def test_time_left_counts_rounds_of_this_session_and_no_evaluation(monkeypatch):
    """By hand: resumed at round 10 of 20; two rounds took 4 s, an evaluation 100 s; 8 x 2 s are left."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = progress._Pace(Recipe(run=Run(minutes=None)), 20)
    assert pace.left == "-:--"
    pace.phase("evaluation")
    now[0] += 100
    pace.phase("rollout")
    for number in (11, 12):
        now[0] += 2
        pace.advance(number)
    assert pace.seconds == pytest.approx(4)
    assert pace.left == "0:16"
    assert pace.fraction == pytest.approx(12 / 20)


def test_time_left_is_bounded_by_the_minutes_given(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = progress._Pace(Recipe(run=Run(minutes=1.0)), 1000)
    now[0] = 30
    pace.advance(1)
    assert pace.left == "0:30"
    assert pace.fraction == pytest.approx(0.5)
