"""Rewards named by text."""

import os.path

import pytest

from imgrl.errors import RewardError
from imgrl.rewards.registry import REWARDS, RewardEntry, require
from imgrl.rewards.resolve import locate, make
from imgrl.rewards.shapes import Shapes

SOURCE = """
from dataclasses import dataclass

@dataclass
class Bright:
    target: float = 0.5
    def __call__(self, images, prompts):
        return -(images.mean((1, 2, 3)) - self.target).abs()

class Mute:
    pass

def plain(images, prompts, *, factor=1.0):
    return [factor] * len(prompts)

class Home:
    nested = staticmethod(plain)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_names_modules_and_files(file):
    assert isinstance(make("shapes", {"reward": "strict"}), Shapes)
    assert locate("os.path:join") is os.path.join
    assert make(f"{file}:Bright", {"target": 0.25}).target == 0.25
    assert make(f"{file}:plain", {"factor": 2.0})([], ["a", "b"]) == [2.0, 2.0]
    assert locate(f"{file}:Home.nested") is locate(f"{file}:plain")  # one file is run once


@pytest.mark.parametrize(
    ("use", "args", "sentence"),
    [
        ("shape", {}, r"uses 'shape', which is no built-in reward .* \(did you mean 'shapes'\?\)"),
        ("{file}:brigth", {}, r"has no 'brigth'"),
        ("{file}:plane", {}, r"has no 'plane' \(did you mean 'plain'\?\)"),
        ("nowhere.py:x", {}, "there is no file /.*nowhere.py"),
        ("no_such_package.x:y", {}, "'no_such_package.x' cannot be imported .ModuleNotFoundError"),
        ("{file}:plain", {"facter": 1}, r"takes no argument 'facter' \(did you mean 'factor'\?\)"),
        ("{file}:Bright", {"goal": 1}, "takes no argument 'goal'; it takes target"),
        ("{file}:Mute", {}, "Mute needs a method `__call__"),
        ("shapes", {"reward": "best"}, "constructing Shapes failed .ValueError: reward must be one of"),
        (7, {}, "must be a function, a class or an object that can be called, got int"),
    ],
)
def test_what_cannot_be_found_is_said(file, use, args, sentence):
    use = use.format(file=file) if isinstance(use, str) else use
    with pytest.raises(RewardError, match=sentence):
        make(use, args, name="mine")


def test_a_file_that_does_not_run(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(RewardError, match="running .*bad.py failed .ZeroDivisionError"):
        make(f"{tmp_path}/bad.py:x")


@pytest.mark.parametrize("name", REWARDS)
def test_every_entry_exists(name):
    entry = REWARDS[name]
    assert entry.description
    if entry.available():
        assert callable(locate(name))


def test_missing_libraries_name_the_extra(monkeypatch):
    entry = RewardEntry(factory="x:y", description="-", modules=("no_such_library",), extra="rewards")
    monkeypatch.setitem(REWARDS, "ghost", entry)
    assert not entry.available()
    with pytest.raises(RewardError, match=r"needs no_such_library, .* `pip install 'imgrl\[rewards\]'`"):
        require("ghost")
