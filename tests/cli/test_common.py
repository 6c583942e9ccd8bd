"""Arguments shared by commands."""

import pytest

from imgrl.cli.common import choose_device, split_arguments, whole_numbers
from imgrl.errors import ConfigError


def test_recipe_and_overrides_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_arguments(None) == (None, [])
    assert split_arguments(["run.seed=1"]) == (None, ["run.seed=1"])
    assert split_arguments(["a/b", "run.seed=1", "run.dir=x"]) == ("a/b", ["run.seed=1", "run.dir=x"])
    (tmp_path / "lr=1.yaml").touch()
    assert split_arguments(["lr=1.yaml"]) == ("lr=1.yaml", [])
    with pytest.raises(ConfigError, match="'a' and 'b' were given"):
        split_arguments(["a", "b"])


def test_whole_numbers():
    assert whole_numbers("0,3,8-11", "--seeds") == [0, 3, 8, 9, 10, 11]
    for text in ("", "a", "1,,2", "3-1", "1.5"):
        with pytest.raises(ConfigError, match="--seeds must be whole numbers"):
            whole_numbers(text, "--seeds")


def test_an_absent_device_is_refused():
    assert choose_device("cpu").type == "cpu"
    for name in ("cuda:97", "nonsense"):
        with pytest.raises(ConfigError, match="cannot be used here"):
            choose_device(name)
