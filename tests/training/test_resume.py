"""A run that stopped, for whatever reason, continues bit for bit, or says why it cannot."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import (
    Data,
    Optimizer,
    Rollout,
    VelocityAnchor,
    assert_same_bits,
    last_tensors,
    rows_of,
    small_recipe,
)
from typer.testing import CliRunner

from imgrl.cli.main import app
from imgrl.errors import CheckpointError, ModelError
from imgrl.flow import StochasticSampler
from imgrl.objectives.image import GRPO
from imgrl.policies import LoraSpec, load_policy
from imgrl.recipe import dump
from imgrl.training import state
from imgrl.training.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_weights,
    read_checkpoint,
    unpack,
)
from imgrl.training.checks import check_resume
from imgrl.training.image_loop import Trainer


@pytest.fixture(scope="module")
def whole(sd3, embeddings, tmp_path_factory):
    """An uninterrupted run of four rounds."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(_resumable(small_recipe(sd3, folder, model_embedding_folder=str(embeddings)))).train()
    return folder


def _resumable(recipe):
    """Evaluations in between, an average of the weights, and prompts that do not divide into rounds."""
    evaluation = dataclasses.replace(recipe.evaluation, every=2, ema=0.5)
    run = dataclasses.replace(recipe.run, rounds=4)
    batch = dataclasses.replace(recipe.batch, groups=4, updates_per_round=2)
    return dataclasses.replace(recipe, run=run, evaluation=evaluation, batch=batch)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(recipe, whole, stop, monkeypatch):
    made = _resumable(recipe())

    class Crash(Exception):
        pass

    real = Trainer._round

    def crash_after(self, parts, reporter):
        if self.round == stop:
            parts.sampler.next_round()  # state moved past the checkpoint
            self.metrics.log(self.round + 1, {"reward": -1.0})  # and a row of the round that is lost
            raise Crash
        real(self, parts, reporter)

    monkeypatch.setattr(Trainer, "_round", crash_after)
    with pytest.raises(Crash):
        Trainer(made).train()
    monkeypatch.undo()
    with Path(made.run.dir, "metrics.jsonl").open("a") as metrics:
        metrics.write('{"round": 99, "rew')  # cut short by the crash
    summary = Trainer(made).train(resume=True)
    assert_same_bits(last_tensors(made.run.dir), last_tensors(whole))
    assert rows_of(made.run.dir) == rows_of(whole)
    assert summary.before == json.loads((whole / "summary.json").read_text())["before"]


def test_a_run_with_random_steps_resumes_bit_for_bit(recipe, tmp_path):
    objective = GRPO(sampler=StochasticSampler(kind="cps", window=1, reach=0.7))
    settings = {"run_rounds": 2, "objective": objective, "rollout": Rollout(steps=4)}
    whole, parts = recipe(**settings, run_dir=str(tmp_path / "whole")), recipe(**settings)
    Trainer(whole).train()
    Trainer(dataclasses.replace(parts, run=dataclasses.replace(parts.run, rounds=1))).train()
    Trainer(parts).train(resume=True)
    assert_same_bits(last_tensors(parts.run.dir), last_tensors(whole.run.dir))


def test_a_pissa_run_resumes_bit_for_bit_from_the_start_that_it_had(sd3, embeddings, tmp_path):
    """The factors as they started come from the checkpoint, whatever the decomposition gives now."""

    def made(name, rounds):
        lora = LoraSpec(rank=2, alpha=4.0, init="pissa")
        folder, place = tmp_path / name, str(embeddings)
        return small_recipe(sd3, folder, model_lora=lora, model_embedding_folder=place, run_rounds=rounds)

    Trainer(made("whole", 2)).train()
    Trainer(made("cut", 1)).train()
    Trainer(made("cut", 2)).train(resume=True)
    whole = last_tensors(tmp_path / "whole")
    assert_same_bits(last_tensors(tmp_path / "cut"), whole)
    assert any(key.startswith("weights:initial/") for key in whole)
    policy = load_policy(sd3, lora=made("cut", 2).model.lora)
    policy.weights.load_state_dict(
        "initial", {k: 0 * t for k, t in policy.weights.state_dict("initial").items()}
    )
    load_weights(latest_checkpoint(tmp_path / "whole"), policy)
    for name in ("current", "initial"):
        for key, tensor in policy.weights.state_dict(name).items():
            assert torch.equal(tensor, whole[f"weights:{name}/{key}"])


def test_resuming_a_finished_run_only_finishes_it_again(recipe):
    made = recipe(run_rounds=1)
    Trainer(made).train()
    before = last_tensors(made.run.dir)
    summary = Trainer(made).train(resume=True)
    assert summary.rounds == 1 and not summary.interrupted
    assert_same_bits(last_tensors(made.run.dir), before)


def test_what_a_checkpoint_holds(whole):
    state, tensors = read_checkpoint(latest_checkpoint(whole))
    assert set(unpack(tensors["weights"])) == {"current", "old", "sampling", "ema"}
    assert {key.split("/")[1] for key in tensors["optimizer"]} == {"step", "exp_avg", "exp_avg_sq"}
    assert state["round"] == 4 and state["step"] == 8
    assert len(list_checkpoints(whole)) == 2  # checkpoint.keep


def test_other_settings_are_refused(recipe):
    made = recipe(run_rounds=1)
    Trainer(made).train()
    with pytest.raises(
        CheckpointError, match=r"optimizer.lr \(0.001 then, 0.0005 now\); only run.rounds, run.minutes"
    ):
        Trainer(dataclasses.replace(made, optimizer=Optimizer(lr=5e-4))).train(resume=True)
    with pytest.raises(CheckpointError, match="other settings"):
        model = dataclasses.replace(made.model, lora=LoraSpec(rank=3, alpha=4.0))
        Trainer(dataclasses.replace(made, model=model)).train(resume=True)
    longer = dataclasses.replace(made.run, rounds=2)
    assert Trainer(dataclasses.replace(made, run=longer)).train(resume=True).rounds == 2


def without(settings, *path):
    """Nested settings less one."""
    first, *rest = path
    changed = {first: without(settings[first], *rest)} if rest else {}
    return {key: value for key, value in settings.items() if key != first} | changed


def save_as_before(monkeypatch, *path):
    """Let checkpoints be written as by a version that did not have this setting yet."""

    def older(recipe):
        return yaml.safe_dump(without(yaml.safe_load(dump(recipe)), *path))

    monkeypatch.setattr(state, "dump", older)
    monkeypatch.setattr(state, "config_hash", lambda recipe: "of another version")


@pytest.mark.parametrize(
    "path", [("scoring", "overlap"), ("objective", "anchor", "adaptive"), ("imitation",)]
)
def test_a_run_from_before_a_setting_existed_goes_on(recipe, path, monkeypatch):
    made = recipe(run_rounds=1)
    save_as_before(monkeypatch, *path)
    Trainer(made).train()
    check_resume(Path(made.run.dir), made)  # its default is how it was
    other = dataclasses.replace(made, scoring=dataclasses.replace(made.scoring, failure_budget=0.5))
    with pytest.raises(CheckpointError, match=r"now: scoring.failure_budget \(0.25 then, 0.5 now\); only"):
        check_resume(Path(made.run.dir), other)


def test_a_reward_that_came_after_the_run_is_no_default(recipe):
    made = recipe(run_rounds=1)
    Trainer(made).train()
    now = dataclasses.replace(made, rewards={**made.rewards, "shapes": 1.0})
    with pytest.raises(CheckpointError, match=r"rewards.shapes.* \(None then"):
        check_resume(Path(made.run.dir), now)


def test_a_setting_newer_than_the_run_must_have_its_default(recipe, monkeypatch):
    made = recipe(run_rounds=1, rollout_batch=2)
    save_as_before(monkeypatch, "scoring", "overlap")
    Trainer(made).train()
    now = dataclasses.replace(made, scoring=dataclasses.replace(made.scoring, overlap=True))
    with pytest.raises(CheckpointError, match=r"scoring.overlap \(False then, True now\)"):
        check_resume(Path(made.run.dir), now)


def test_a_refused_resume_leaves_the_run_as_it_was(recipe):
    """The recipe saved in the folder is what the next `--resume` reads."""
    made = recipe(run_rounds=1, rewards={"jpeg_incompressibility": 1.0})
    made = dataclasses.replace(
        made, objective=dataclasses.replace(made.objective, anchor=VelocityAnchor(weight=0.0))
    )
    Trainer(made).train()
    saved = (Path(made.run.dir) / "config.yaml").read_text()
    wrong = CliRunner().invoke(app, ["train", "--resume", made.run.dir, "objective.beta=0.5", "--quiet"])
    assert wrong.exit_code == 2 and "objective.beta" in wrong.stderr
    assert (Path(made.run.dir) / "config.yaml").read_text() == saved
    right = CliRunner().invoke(app, ["train", "--resume", made.run.dir, "run.rounds=2", "--quiet"])
    assert right.exit_code == 0, right.output


def test_changed_prompts_are_refused(recipe, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\na red circle\n")
    made = recipe(run_rounds=1, data=Data(prompts=str(file)))
    Trainer(made).train()
    file.write_text("a cat\na dog\na red square\n")
    with pytest.raises(CheckpointError, match="other prompts than .*prompts.txt.* holds now"):
        Trainer(made).train(resume=True)


def test_a_lora_of_another_rank_is_refused(sd3, embeddings, whole):
    other = load_policy(sd3, lora=LoraSpec(rank=3, alpha=4.0), embedding_folder=embeddings)
    with pytest.raises(
        ModelError, match="do not fit 'current'.*use the base model and LoRA rank of the file"
    ):
        load_weights(latest_checkpoint(whole), other)
    same = load_policy(sd3, lora=LoraSpec(rank=2, alpha=4.0), embedding_folder=embeddings)
    with pytest.raises(CheckpointError, match="has no weights 'best'; it holds current, ema, old, sampling"):
        load_weights(latest_checkpoint(whole), same, "best")
    load_weights(latest_checkpoint(whole), same, "old")
    saved = unpack(read_checkpoint(latest_checkpoint(whole))[1]["weights"])["old"]
    assert_same_bits(dict(same.weights.state_dict("current")), saved)
