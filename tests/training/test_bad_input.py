"""What cannot run is refused in one sentence, before a model is loaded where that can be known."""

import errno
import json
import shutil
import tempfile

import pytest
from small_runs import Batch, Data, Rollout, VelocityAnchor, brightness, train
from typer.testing import CliRunner

from imgrl.cli.main import app
from imgrl.errors import CheckpointError, ConfigError, DataError, ModelError, RewardError
from imgrl.flow import StochasticSampler
from imgrl.recipe import GRPO, dump
from imgrl.training import checkpoint
from imgrl.training.image_loop import Trainer


def needs_level(images, prompts, *, level):
    return [0.5] * len(prompts)


EARLY = {
    "groups": (
        {"batch": Batch(groups=3, group_size=2, micro_groups=2)},
        ConfigError,
        r"batch.groups \(3\) must be",
    ),
    "updates": (
        {"batch": Batch(groups=4, group_size=2, micro_groups=2, updates_per_round=3)},
        ConfigError,
        r"updates_per_round \(3\) must divide the 2 micro-batches.*could be 1, 2",
    ),
    "group of one": (
        {"batch": Batch(groups=3, group_size=1, micro_groups=1)},
        ConfigError,
        "group_size is 1, but images are compared within their group",
    ),
    "too few prompts": (
        {"data": Data(prompts=("a cat", "a dog"))},
        ConfigError,
        "batch.groups is 3, but data.prompts has only 2 prompts, and none may repeat within a round",
    ),
    "no such file": (
        {"data": Data(prompts="nowhere.txt")},
        DataError,
        "There is no prompt file .*nowhere.txt",
    ),
    "no such set": (
        {"data": Data(prompts="world:moon")},
        DataError,
        "no prompt set 'world:moon'; the sets are",
    ),
    "no such column": (
        {"data_balance": "tag"},
        ConfigError,
        "data.balance is 'tag', but prompt 'a red circle' has no",
    ),
    "no metadata": (
        {"rewards": {"mine": needs_level}},
        RewardError,
        "Reward 'mine' requires the column 'level', but the prompts have no columns",
    ),
    "no shapes": ({"rewards": {"shapes": 1.0}}, RewardError, "Reward 'shapes'.*column"),
    "no weight": ({"rewards": {"shapes": 0.0}}, ConfigError, "every reward has weight 0"),
    "leash": (
        {"rewards": {"a": brightness, "b": brightness}},
        ConfigError,
        r"needs a combined reward within \[0, 1\], but the weights add up to 2",
    ),
    "rollout batch": (
        {"rollout": Rollout(batch=7)},
        ConfigError,
        "rollout.batch is 7, but a process samples only 6",
    ),
    "random steps of second order": (
        {"rollout": Rollout(steps=3, solver="dpm2"), "objective": GRPO()},
        ConfigError,
        "rollout.solver is 'dpm2', but grpo takes random steps, which go with 'euler' only",
    ),
    "anchor of another guidance": (
        {
            "rollout": Rollout(steps=3, guidance=2.0),
            "objective": GRPO(anchor=VelocityAnchor(weight=0.1, guidance=1.0)),
        },
        ConfigError,
        "rollout.guidance is 2 and objective.anchor.guidance 1, .*make them equal",
    ),
    "window": (
        {"objective": GRPO(sampler=StochasticSampler(window=3, reach=1.0))},
        ConfigError,
        ".*A window of 3 random steps does not fit into the first 2 of 3 steps",
    ),
    "no average": (
        {"evaluation_weights": "ema"},
        ConfigError,
        "evaluation.ema must give the average's decay",
    ),
    "no folder": ({"run_dir": None}, ConfigError, "run.dir is not set"),
}


@pytest.mark.parametrize("case", EARLY)
def test_refused_before_a_model_is_loaded(recipe, case):
    changes, kind, sentence = EARLY[case]
    with pytest.raises(kind, match=sentence) as found:
        Trainer(recipe(model_path="nobody/no-model-would-load", **changes)).train()
    assert "\n" not in str(found.value)


def test_empty_prompt_file(recipe, tmp_path):
    (tmp_path / "none.txt").write_text("\n  \n")
    with pytest.raises(DataError, match="At least one prompt is needed, but .*none.txt has none"):
        Trainer(recipe(data=Data(prompts=str(tmp_path / "none.txt")))).train()


def test_a_folder_that_cannot_be_written(recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="run.dir .*file/run cannot be written .*choose another folder"):
        Trainer(recipe(run_dir=str(tmp_path / "file" / "run"))).train()


def test_a_folder_without_permission(recipe, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)  # as the folder is tried
    with pytest.raises(
        ConfigError, match=r"run.dir .* cannot be written \(.*Permission denied.*choose another"
    ):
        Trainer(recipe()).train()


def test_permission_lost_in_mid_run(recipe, monkeypatch):
    def denied(tensors, file):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(checkpoint, "save_file", denied)
    with pytest.raises(
        CheckpointError, match="could not be written .*Permission denied.* allow writing there"
    ):
        Trainer(recipe()).train()


def test_resume_without_a_checkpoint(recipe):
    with pytest.raises(
        CheckpointError, match="holds no checkpoint to resume from: start the run without --resume"
    ):
        Trainer(recipe()).train(resume=True)


# -------------------------------------------------------------------- models


def test_no_model(recipe):
    with pytest.raises(ModelError, match="nowhere does not exist"):
        Trainer(recipe(model_path="nowhere")).train()


def test_another_kind_of_model(recipe, sd3, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    index = json.loads((sd3 / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ModelError, match="holds a StableDiffusionPipeline, but imgrl trains"):
        Trainer(recipe(model_path=str(folder))).train()


@pytest.mark.parametrize("missing", ["vae/diffusion_pytorch_model.safetensors", "text_encoder"])
def test_an_incomplete_model(recipe, sd3, tmp_path, missing):
    folder = tmp_path / "torn"
    shutil.copytree(sd3, folder)
    (shutil.rmtree if (folder / missing).is_dir() else lambda path: path.unlink())(folder / missing)
    with pytest.raises(ModelError, match=f"is incomplete: {missing.split('/')[0]}/.* is missing"):
        Trainer(recipe(model_path=str(folder))).train()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_height": 20}, "must be multiples of 16 pixels for this model, got 20 x 16"),
        (
            {"rollout": Rollout(steps=1)},
            "rollout.steps is 1, which does not suit objective.times: .*at least 2",
        ),
    ],
)
def test_sizes_that_do_not_suit_the_model(recipe, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Trainer(recipe(**changes)).train()


def test_an_evaluation_too_small_for_its_processes(recipe, monkeypatch):
    from imgrl.training.distributed import World

    monkeypatch.setattr(World, "size", 3)
    made = recipe(batch=Batch(groups=3, group_size=3, micro_groups=1))
    with pytest.raises(ConfigError, match="an evaluation of 2 prompts cannot be shared by 3 processes"):
        Trainer(made).train()


# ------------------------------------------------------------ the same folder


def test_results_are_not_overwritten(recipe):
    train(recipe(run_rounds=1))
    with pytest.raises(
        ConfigError, match="already holds a run; continue it with `imgrl train --resume .*/run`"
    ):
        Trainer(recipe(run_rounds=1)).train()


def test_a_run_that_never_started_may_be_started_again(recipe, tmp_path):
    """Its advice must not go in circles: nothing to resume, nothing to lose."""
    file = tmp_path / "recipe.yaml"
    wrong, right = recipe(model_path="nowhere", run_rounds=1), recipe(run_rounds=1)
    file.write_text(dump(wrong))
    first = CliRunner().invoke(app, ["train", str(file), "--quiet"])
    assert first.exit_code == 2 and first.stderr.startswith("imgrl: nowhere does not exist")
    again = CliRunner().invoke(app, ["train", str(file), "--quiet", f"model.path={right.model.path}"])
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.prompts=nowhere.txt"], "There is no prompt file"),
        (["data.prompts=[a cat, a dog]"], "data.prompts has only 2 prompts"),
        (["run.dir=/dev/null/run"], "cannot be written"),
        (["model.path=/dev/null"], "is a file, not a folder"),
        (["rewards={shapes: 1.0}"], "Reward 'shapes'"),
    ],
)
def test_the_command_line_prints_the_sentence(recipe, tmp_path, overrides, sentence):
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(recipe()))
    result = CliRunner().invoke(app, ["train", str(file), *overrides])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith("imgrl: ") and sentence in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.output
