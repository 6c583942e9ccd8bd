"""A recipe of the other kind: what decides, and what is told of a run folder."""

import pytest

from imgrl.config import resolve
from imgrl.errors import ConfigError


def recipe(tmp_path, text, name="own.yaml"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_one_slip_within_a_section_is_told_as_a_slip(tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'run.steps'"):
        resolve(recipe(tmp_path, "run: {steps: 3}\n"))
    with pytest.raises(ConfigError, match="is one for language models"):
        resolve(recipe(tmp_path, "generation: {max_tokens: 3}\n"))


def test_a_run_of_the_other_kind_is_resumed_by_the_other_command(tmp_path):
    saved = recipe(tmp_path, "generation: {max_tokens: 3}\n", "config.yaml")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=f"`imgrl lm train --resume {tmp_path}` runs it"):
        resolve(saved)
