"""The commands on a whole run, with a model of random weights and two prompts."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_train_then_continue_then_sample(imgrl, small, sd3_folder, tmp_path):
    first = imgrl("train", *small, "run.dir=run", "run.rounds=1")
    assert first.exit_code == 0, (first.output, first.exception)
    assert "round 1/1" in first.stdout and "time by phase" in first.stdout
    again = imgrl("train", "--resume", "run", "run.rounds=2", "--json")
    assert again.exit_code == 0, (again.output, again.exception)
    assert json.loads(again.stdout)["rounds"] == 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 2
    drawn = imgrl("sample", "a cow", "--model", sd3_folder, "--lora", "run", "--seeds", 0, "--steps", 1)
    assert drawn.exit_code == 0, (drawn.output, drawn.exception)


def test_verify_resume_finds_no_difference(imgrl, small):
    result = imgrl("verify-resume", *small, "--rounds", 2, "--stop", 1, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads(result.stdout)
    assert report["different"] == [] and report["tensors"] > 50
