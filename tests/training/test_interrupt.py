"""Ctrl-C: the round is finished and saved; a second one stops at once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_runs import RewardSpec, assert_same_bits, last_tensors, rows_of, train
from two_processes import two
from typer.testing import CliRunner

from imgrl.cli.main import app
from imgrl.recipe import dump
from imgrl.training.checkpoint import list_checkpoints, read_checkpoint
from imgrl.training.image_loop import Trainer
from imgrl.training.interrupt import Interrupt

REWARD = """
import os, signal, time

calls = 0

def bright(images, prompts, *, at, times, rank):
    "Sends itself the signal in one of its calls: the probe and the first evaluation are calls 1 and 2."
    global calls
    calls += 1
    if calls == at and os.environ.get("RANK", "0") == str(rank):
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.2 if times > 1 else 0)
    return images.mean((1, 2, 3)).tolist()
"""


@pytest.fixture
def reward(tmp_path):
    """Describe a reward that presses Ctrl-C during round ``round``, in one process of several."""
    file = tmp_path / "reward.py"
    file.write_text(REWARD)

    def describe(round, times=1, rank=0):
        args = {"at": 2 + round, "times": times, "rank": rank}
        return {"bright": RewardSpec(use=f"{file}:bright", args=args, retries=0)}

    return describe


def test_the_round_is_finished_and_saved(recipe, reward):
    before = signal.getsignal(signal.SIGINT)  # a process started in the background ignores it
    made = recipe(run_rounds=4, checkpoint_every=0, rewards=reward(2))
    summary = Trainer(made).train()
    assert summary.interrupted and summary.rounds == 2 and not summary.after
    assert [path.name for path in list_checkpoints(_folder(made))] == ["step-2"]
    assert [row["round"] for row in rows_of(made.run.dir)] == [0, 1, 2]
    assert not (_folder(made) / "lora").exists()
    assert signal.getsignal(signal.SIGINT) is before

    resumed = Trainer(made).train(resume=True)
    assert resumed.rounds == 4 and resumed.after and not resumed.interrupted
    quiet = recipe(run_rounds=4, checkpoint_every=0, rewards=reward(-9), run_dir=made.run.dir + "-quiet")
    Trainer(quiet).train()
    assert_same_bits(last_tensors(made.run.dir), last_tensors(quiet.run.dir))


def test_in_the_last_round_it_changes_nothing(recipe, reward):
    summary = Trainer(recipe(run_rounds=2, rewards=reward(2))).train()
    assert not summary.interrupted and summary.after


def test_from_the_command_line(recipe, reward, tmp_path):
    file = tmp_path / "recipe.yaml"
    made = recipe(run_rounds=4, checkpoint_every=0, rewards=reward(2))
    file.write_text(dump(made))
    result = CliRunner().invoke(app, ["train", str(file), "--json"])
    assert result.exit_code == 130, result.output
    assert json.loads(result.stdout)["interrupted"] is True
    assert [path.name for path in list_checkpoints(_folder(made))] == ["step-2"]


def test_of_a_process_by_itself(recipe, reward, tmp_path):
    """A real signal at a moment of its own choosing, from outside."""
    file = tmp_path / "recipe.yaml"
    made = recipe(run_rounds=100_000, checkpoint_every=0, rewards=reward(-9))
    file.write_text(dump(made))
    command = [sys.executable, "-m", "imgrl.cli.main", "train", str(file), "--json"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        metrics, patience = _folder(made) / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and '"round": 2' in metrics.read_text()):
            assert process.poll() is None and time.monotonic() < patience
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    summary = json.loads(output)
    assert summary["interrupted"] is True and summary["rounds"] >= 2
    (checkpoint,) = list_checkpoints(_folder(made))
    state, _ = read_checkpoint(checkpoint)
    assert state["round"] == summary["rounds"] == rows_of(made.run.dir)[-1]["round"]


def _continue(recipe):
    train(recipe, resume=True)


def test_one_of_two_processes_has_both_finish_the_round_and_save(recipe, reward):
    made = recipe(run_rounds=4, checkpoint_every=0, rewards=reward(2, rank=1))
    two(train, made)
    assert [path.name for path in list_checkpoints(_folder(made))] == ["step-2"]
    assert [row["round"] for row in rows_of(made.run.dir)] == [0, 1, 2]
    assert json.loads((_folder(made) / "summary.json").read_text())["interrupted"] is True
    two(_continue, made)
    assert [row["round"] for row in rows_of(made.run.dir)] == [0, 1, 2, 3, 4, 4]


def test_a_second_one_stops_at_once(recipe, reward, tmp_path):
    file = tmp_path / "recipe.yaml"
    made = recipe(run_rounds=4, checkpoint_every=0, rewards=reward(1, times=2))
    file.write_text(dump(made))
    result = CliRunner().invoke(app, ["train", str(file), "--quiet"])
    assert result.exit_code == 130 and "imgrl: interrupted" in result.stderr
    assert not list_checkpoints(_folder(made))


def test_the_same_signal_twice_in_a_row_counts_once():
    with Interrupt() as interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):  # a launcher passes on what the terminal sent
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        assert interrupt.asked
        interrupt.repeat = 0.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)


def test_outside_the_main_thread_signals_are_left_alone():
    asked, before = [], signal.getsignal(signal.SIGINT)

    def work():
        with Interrupt() as interrupt:
            asked.append(interrupt.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False] and signal.getsignal(signal.SIGINT) is before


def _folder(made):
    return Path(made.run.dir)
