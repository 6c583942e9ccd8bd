"""`imgrl check` of language recipes, and what commands say to a recipe of the other kind."""

import json

import pytest
import yaml

from imgrl.cli import lm
from imgrl.config import resolve
from imgrl.config.kinds import is_for_texts
from imgrl.config.text import resolve_text
from imgrl.config.tree import parse_file, parse_text
from imgrl.errors import ConfigError
from imgrl.resources import recipe_names, recipe_path

pytest.importorskip("trl")
TEXTS = [name for name in recipe_names() if name.startswith("tiny-lm/")]


@pytest.mark.parametrize("name", recipe_names())
def test_a_bundled_recipe_is_told_by_its_keys_and_refused_by_the_other_command(name, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(recipe_path(name).read_text())
    assert is_for_texts(parse_file(file)) == (name in TEXTS)
    wrong, command = (resolve, "imgrl lm train") if name in TEXTS else (resolve_text, "imgrl train")
    for given in (name, file):
        with pytest.raises(
            ConfigError, match=f"which this command does not take; `{command} {given}` runs it"
        ):
            wrong(given)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("", False),
        ("{model: {path: x}, objective: grpo}", False),
        ("objective: dpo", True),
        ("{generation: {max_tokens: 4}, nonsense: 1}", True),
        ("{generation: {max_tokens: 4}, rollout: {steps: 2}}", False),
        ("{generation: {max_tokens: 4}, rollout: {steps: 2}, run: {steps: 2}, objective: {name: sft}}", True),
        ("{run: 5, data: [1], objective: {name: 5}, rewards: {x: 1}}", False),
    ],
)
def test_the_kind_of_a_recipe_goes_by_most_of_its_keys(text, texts):
    assert is_for_texts(parse_text(text or "{}", source="x")) == texts


def test_a_slip_in_an_override_or_a_key_does_not_change_the_kind(refused, tmp_path):
    assert "unknown key 'generation'" in refused("check", "generation.max_tokens=3")
    assert "unknown key 'rollout'" in refused("lm", "train", "rollout.steps=3")
    (tmp_path / "own.yaml").write_text("{run: {rounds: 3}, rollout: {steps: 2}, generation: {max_tokens: 4}}")
    assert "unknown key 'generation' (own.yaml:1)" in refused("train", "own.yaml")


@pytest.mark.parametrize(
    ("command", "recipe"),
    [("train", "tiny-lm/sft"), ("serve-rewards", "tiny-lm/grpo"), ("lm train", "tiny-sd3/crd")],
)
def test_a_recipe_of_the_other_kind_is_one_sentence(refused, command, recipe):
    assert f"recipe '{recipe}' is one for " in refused(*command.split(), recipe)


@pytest.mark.parametrize("name", TEXTS)
def test_every_bundled_language_recipe_can_run(imgrl, name):
    result = imgrl("check", name)
    assert result.exit_code == 0, result.output
    assert "the recipe can run if the model is what it expects" in result.stdout


def test_check_says_what_a_step_is(imgrl, tmp_path):
    rows = [{"prompt": f"{i}", "answer": "1", "completion": "b"} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {
        "data": {"prompts": "rows.jsonl"},
        "evaluation": {"prompts": "rows.jsonl", "verifier": "exact", "limit": 3},
        "rewards": {"exact": 1, "vote": 0.5},
        "batch": {"groups": 6, "group_size": 4, "votes": 8, "micro": 4},
        "generation": {"max_tokens": 4},
        "run": {"steps": 7},
        "checkpoint": {"every": 7},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(given))
    result = imgrl("check", "own.yaml", "--processes", 2, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["prompts"] == {"training": 5, "held_out": 3, "rewards": ["exact", "vote"]}
    assert report["batch"] == {
        "prompts_per_step": 6,
        "completions_per_step": 48,
        "rows_per_forward": 4,
        "steps_in_all": 7,
    }
    assert report["recipe"]["batch"]["votes"] == 8
    shown = imgrl("check", "own.yaml", "objective=sft", "batch={group_size: 1, votes: null}", "--show").stdout
    assert "max_tokens: 4" in shown and "sequences per step" in shown and "completions per step" not in shown


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["tiny-lm/grpo", "batch.group_size=1"], "at least 2 for grpo"),
        (["tiny-lm/grpo", "--processes", "3"], "which 3 processes cannot share evenly"),
        (["tiny-lm/grpo", "data.prompts=nowhere.jsonl"], "no file nowhere.jsonl"),
        (["tiny-lm/grpo", "evaluation.prompts=nowhere.jsonl"], "no file nowhere.jsonl"),
        (["tiny-lm/grpo", "evaluation.temperature=0"], "evaluation.samples=1"),
        (["tiny-lm/grpo", "evaluation.verifier=exactt"], "did you mean 'exact'"),
        (["tiny-lm/grpo", "rewards={exactt: 1}"], "did you mean 'exact'"),
        (["tiny-lm/grpo", "batch.votes=64"], "batch.votes has no effect"),
        (["tiny-lm/grpo", "model.path=./tinylm"], "There is no folder ./tinylm"),
        (["tiny-lm/trrd", "model.teacher=tinylm"], "There is no model 'tinylm'; did you mean 'tiny-lm'"),
        (["tiny-lm/grpo", "generation.vllm={}"], "vLLM, which is not installed"),
        (["tiny-lm/sft", "data.prompts=rows.jsonl"], "no column 'completion' in row 1"),
        (["tiny-lm/dpo", "data.prompts=rows.jsonl"], "no column 'chosen' in row 1"),
    ],
)
def test_refused_before_a_model_is_loaded(refused, tmp_path, given, sentence):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "1"}\n')
    assert sentence in refused("check", *given)


def test_without_trl_the_extra_is_named(refused, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs trl and datasets: run `pip install 'imgrl[lm]'`" in refused("check", "tiny-lm/grpo")
    with pytest.raises(ConfigError, match="imgrl lm train needs trl"):
        lm.require_trl("imgrl lm train")
