"""`imgrl eval shapes`."""

import json

import pytest


def test_scores_by_number_of_steps(imgrl, sd3_folder):
    result = imgrl(
        "eval",
        "shapes",
        "--model",
        sd3_folder,
        "--limit",
        3,
        "--images-per-prompt",
        2,
        "--steps",
        "1,2",
        "--json",
    )
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert set(scores) == {"1 steps", "2 steps"}
    for figures in scores.values():
        assert 0 <= figures["shapes"] <= 0.5  # random weights draw no shapes


def test_a_score_is_repeatable_and_depends_on_the_seed_alone(imgrl, sd3_folder):
    def run(*more):
        options = ["--model", sd3_folder, "--limit", 2, "--images-per-prompt", 2, "--steps", 1]
        return json.loads(imgrl("eval", "shapes", *options, "--json", *more).stdout)

    assert run() == run("--batch", 3)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--prompts", "plain.txt"], "'include'"),
        (["--prompts", "absent.jsonl"], "absent.jsonl"),
        (["--steps", "many"], "--steps must be whole numbers"),
        (["--model", "no/such/model"], "does not exist"),
        (["--solver", "heun"], "--solver must be euler or dpm2, but 'heun' was given"),
        (["--height", "40"], "multiples of 16 pixels for this model, got 40 x 64"),
        (["--width", "40"], "multiples of 16 pixels for this model, got 64 x 40"),
        (["--max-sequence-length", "999"], "max_sequence_length must lie between 0 and 512"),
        (["--distilled-guidance", "3.5"], "only fits Flux models"),
    ],
)
def test_refused(refused, sd3_folder, tmp_path, arguments, part):
    (tmp_path / "plain.txt").write_text("a cat\n")
    model = [] if "--model" in arguments else ["--model", sd3_folder]
    assert part in refused("eval", "shapes", *model, *arguments)
