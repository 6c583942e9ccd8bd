"""What `imgrl train` refuses before it loads anything, and where it writes."""

import pytest

from imgrl.cli.runs import recipe_of_run
from imgrl.config import DEFAULT_RECIPE, dump, resolve
from imgrl.errors import ConfigError
from imgrl.recipe import Recipe, Run


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
