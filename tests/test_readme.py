"""The training commands of the README resolve as they stand there, with the prompt files that they name."""

import re
import shlex
from pathlib import Path

import pytest

from imgrl.cli.common import split_arguments
from imgrl.config import resolve
from imgrl.config.text import resolve_text
from imgrl.data import load_prompts
from imgrl.objectives.overview import overview_markdown

README = Path(__file__).parents[1] / "README.md"


def training_commands():
    """The words after ``train`` of every command in a bash block, and the processes it starts."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(), flags=re.DOTALL)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for before, word in zip(words, words[1:], strict=False):
            if word == "train" and before in (
                "imgrl",
                "imgrl.cli.main",
            ):  # `imgrl lm train` has its own test below
                processes = words[words.index("--num_processes") + 1] if "--num_processes" in words else "1"
                yield int(processes), words[words.index("train") + 1 :]


COMMANDS = list(training_commands())
FRESH = [(processes, words) for processes, words in COMMANDS if "--resume" not in words]


def test_the_commands_are_found():
    assert len(FRESH) >= 4 and len(COMMANDS) > len(FRESH)
    assert {processes for processes, _ in FRESH} == {1, 8}


@pytest.mark.parametrize(("processes", "words"), FRESH, ids=[" ".join(w) or "default" for _, w in FRESH])
def test_a_command_resolves_and_finds_its_prompts(processes, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, overrides = split_arguments(words)
    for key, value in (override.split("=", 1) for override in overrides):
        if key.endswith(".prompts"):  # the reader's own file
            Path(value).write_text("".join(f'a sign that says "{key} {i}"\n' for i in range(48)))
    recipe = resolve(name, overrides, processes=processes)
    assert len(load_prompts(recipe.data.prompts)) >= recipe.batch.groups
    assert load_prompts(recipe.evaluation.prompts)


def test_no_two_commands_write_to_one_folder_and_a_resumed_one_was_begun():
    folders = [word for _, words in FRESH for word in words if word.startswith("run.dir=")]
    assert len(folders) == len(set(folders)) == 2
    for _, words in COMMANDS:
        if "--resume" in words:
            assert f"run.dir={words[words.index('--resume') + 1]}" in folders


def test_the_table_of_anchors_is_what_the_objectives_declare():
    assert overview_markdown() in README.read_text()


def test_the_language_commands_resolve():
    found = re.findall(r"^imgrl lm train(.*?)(?:#|$)", README.read_text(), flags=re.MULTILINE)
    assert len(found) >= 3
    for words in map(shlex.split, found):
        name, overrides = split_arguments(words)
        resolve_text(name, [o for o in overrides if not o.startswith("data.prompts")])
