"""Packaged files are found first, the checkout's otherwise."""

import pytest

from imgrl import resources
from imgrl.errors import ConfigError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installation: tmp/site/imgrl, with nothing in it yet."""
    home = tmp_path / "site" / "imgrl"
    home.mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", home)
    return home


def test_the_packaged_folder_wins_over_the_checkout(package):
    (package.parent / "configs").mkdir()
    assert resources.resource_root("configs") == package.parent / "configs"
    (package / "configs").mkdir()
    assert resources.resource_root("configs") == package / "configs"


def test_a_broken_installation_says_so(package):
    with pytest.raises(ConfigError, match="reinstall imgrl"):
        resources.resource_root("assets")


def test_an_unknown_asset_lists_the_known(package):
    (package / "assets" / "tiny-x").mkdir(parents=True)
    assert resources.asset("tiny-x") == package / "assets" / "tiny-x"
    with pytest.raises(ConfigError, match="'tiny-y'.*tiny-x"):
        resources.asset("tiny-y")


def test_recipes_by_name_and_by_path(package, tmp_path):
    (package / "configs" / "a").mkdir(parents=True)
    bundled = package / "configs" / "a" / "b.yaml"
    bundled.touch()
    own = tmp_path / "own.yaml"
    own.touch()
    assert resources.recipe_names() == ["a/b"]
    for name in ("a/b", "a/b.yaml", "configs/a/b.yaml", bundled):
        assert resources.recipe_path(name) == bundled
    assert resources.recipe_path(own) == own
    with pytest.raises(ConfigError, match="'a/c' is neither a file nor a bundled recipe; bundled are: a/b"):
        resources.recipe_path("a/c")


def test_a_model_is_a_folder_a_bundled_name_or_a_hub_name(package, tmp_path, monkeypatch):
    (package / "assets" / "tiny").mkdir(parents=True)
    (package / "assets" / "tiny" / "model_index.json").touch()
    assert resources.model_path("tiny") == package / "assets" / "tiny"
    assert resources.model_path("org/tiny") == "org/tiny"
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert str(resources.model_path("tiny")) == "tiny"  # a folder here comes first


def test_the_bundled_language_model_is_found_by_its_name():
    assert resources.model_path("tiny-lm") == resources.asset("tiny-lm")
