"""What `imgrl train` refuses before it loads anything, and where it writes."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from imgrl.cli.main import app
from imgrl.cli.runs import recipe_of_run
from imgrl.config import DEFAULT_RECIPE, dump, resolve
from imgrl.errors import ConfigError
from imgrl.recipe import Recipe, Run
from imgrl.training.checkpoint import FORMAT


def _recipe(arguments, resume):
    return recipe_of_run(arguments, resume, resolve=resolve, default=DEFAULT_RECIPE, command="imgrl train")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["objective.bta=1"], "did you mean 'beta'"),
        (["batch.group_size=1"], "at least 2"),
        (["batch.micro_groups=5"], "must be a multiple"),
        (["nowhere.yaml"], "neither a file nor a bundled recipe"),
        (["a", "b"], "one recipe is expected"),
        (["--resume", "nowhere"], "there is no nowhere/config.yaml"),
    ],
)
def test_refused(refused, arguments, part):
    assert part in refused("train", *arguments)


def test_a_run_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _recipe(None, None).run.dir.startswith("runs/tiny-sd3-crd-")
    assert _recipe(["run.dir=here"], None).run.dir == "here"


def test_an_existing_run_is_not_overwritten(refused, tmp_path):
    (tmp_path / "old" / "checkpoints" / "step-1").mkdir(parents=True)
    assert "old already holds a run; continue it with `imgrl train --resume old`" in refused(
        "train", "run.dir=old"
    )


def test_resume_takes_thesaved_recipe_and_the_folder_named(tmp_path):
    saved = Recipe(run=Run(dir="where-it-was", seed=5))
    (tmp_path / "config.yaml").write_text(dump(saved))
    resumed = _recipe(["run.rounds=9"], tmp_path)
    assert resumed.run == Run(dir=str(tmp_path), seed=5, rounds=9)
    with pytest.raises(ConfigError, match="leave out the recipe 'tiny-sd3/crd'"):
        _recipe(["tiny-sd3/crd"], tmp_path)


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A run with two checkpoints."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    overrides = [*small, f"run.dir={folder}", "run.rounds=2", "checkpoint.every=1"]
    result = CliRunner().invoke(app, ["train", "-q", *overrides])
    assert result.exit_code == 0, (result.output, result.exception)
    return folder


def _flip(folder):
    """The last byte of the weights, found only when they are read."""
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _age(folder):
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"format": FORMAT - 1}))


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (_flip, "weights.safetensors is missing or was changed after it was written"),
        (lambda folder: (folder / "state.json").write_text('{"format": '), "no readable checkpoint"),
        (_age, f"checkpoint format {FORMAT - 1}, this version of imgrl reads {FORMAT}"),
    ],
    ids=["a byte", "cut short", "older"],
)
def test_a_checkpoint_that_cannot_be_resumed_from(imgrl, trained, tmp_path, damage, part):
    shutil.copytree(trained, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "step-2")
    assert part in _last_words(imgrl("train", "-q", "--resume", "run"))


def _last_words(result):
    """The sentence of a refused command, after loading bars, which are off only where tqdm loads after imgrl."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("imgrl: ")
    return last


def test_the_way_out_of_a_damaged_checkpoint(imgrl, trained, tmp_path):
    """The sentence names the checkpoint before; without the damaged one the run goes on from there."""
    shutil.copytree(trained, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-2"
    _flip(newest)
    refused = imgrl("train", "-q", "--resume", "run")
    assert "remove that folder to resume from step-1" in _last_words(refused)
    shutil.rmtree(newest)
    result = imgrl("train", "-q", "--resume", "run")
    assert result.exit_code == 0, (result.output, result.exception)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2, 2]
    assert (newest / "weights.safetensors").read_bytes() == (
        trained / "checkpoints" / "step-2" / "weights.safetensors"
    ).read_bytes()


def test_several_processes_need_a_folder_they_agree_on(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="run.dir must be given where 2 processes"):
        _recipe(None, None)
    (tmp_path / "config.yaml").touch()  # written by the first process meanwhile
    monkeypatch.setenv("RANK", "1")
    assert _recipe([f"run.dir={tmp_path}"], None).run.dir == str(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ConfigError, match="5 processes"):
        _recipe([f"run.dir={tmp_path}"], None)
