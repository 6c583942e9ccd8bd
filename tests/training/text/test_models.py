"""Folders that are no language model are refused in one sentence, on the Python side and on the command line."""

import shutil

import pytest
from small_lm import tokenizer
from typer.testing import CliRunner

from imgrl.cli.main import app
from imgrl.errors import ModelError
from imgrl.recipe_text import TextModel
from imgrl.training.text.models import load_model


def refused(folder, sentence):
    with pytest.raises(ModelError, match=sentence):
        load_model(TextModel(path=str(folder)))
    result = CliRunner().invoke(app, ["lm", "eval", "--model", str(folder)])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("imgrl: ") and result.stderr.count("\n") == 1


def test_a_folder_without_a_model(tmp_path):
    refused(tmp_path, "cannot be loaded as a causal language model")


def test_weights_that_cannot_be_read(lm, tmp_path):
    folder = shutil.copytree(lm, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"nothing")
    refused(folder, "cannot be loaded as a causal language model")


def test_a_model_without_a_tokenizer(lm, tmp_path):
    folder = shutil.copytree(lm, tmp_path / "mute")
    for file in folder.glob("*token*"):
        file.unlink()
    refused(folder, "no tokenizer that can be loaded")


def test_a_tokenizer_without_an_end_of_text(lm, tmp_path):
    folder = shutil.copytree(lm, tmp_path / "endless")
    own = tokenizer()
    own.eos_token = None
    own.save_pretrained(folder)
    refused(folder, "no end-of-text token, which generation needs")


def test_a_tokenizer_without_padding_pads_with_the_end_of_text(lm, tmp_path):
    folder = shutil.copytree(lm, tmp_path / "unpadded")
    own = tokenizer()
    own.pad_token = None
    own.save_pretrained(folder)
    _, found = load_model(TextModel(path=str(folder)))
    assert found.pad_token_id == found.eos_token_id == 1
