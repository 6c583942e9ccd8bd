"""Folders that are no language model are refused in one sentence, on the Python side and on the command line."""

import json
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_lm import tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
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


def test_what_reads_like_a_folder_is_not_looked_for_on_a_hub(tmp_path):
    refused("./nowhere", r"There is no folder ./nowhere; give one that holds a transformers model")
    refused(tmp_path / "nowhere", "There is no folder")


def test_a_tokenizer_of_special_tokens_alone_is_none(lm, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=20, num_key_value_heads=2, **sizes)).save_pretrained(tmp_path)
    refused(tmp_path, "has no tokenizer: save it beside the model with tokenizer.save_pretrained")


@pytest.fixture
def adapter(lm, tmp_path):
    """A LoRA that changes something, saved with its tokenizer as a run leaves it."""
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(lm), LoraConfig(r=2, target_modules="all-linear")
    )
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


IDS = torch.tensor([[5, 9, 14, 3, 22]])


def test_an_adapter_is_merged_into_its_model(adapter):
    model, _ = load_model(TextModel(path=str(adapter)))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(adapter)(IDS).logits
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-5)
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("train", ["lora", "full"])
def test_training_goes_on_from_an_adapter_and_leaves_a_whole_model(train, adapter, tmp_path):
    settings = [
        f"model.train={train}",
        "optimizer.lr=1e-12",
        "run.steps=1",
        "checkpoint.every=1",
        "batch.groups=4",
    ]
    small = ["data.count=8", "generation.max_tokens=4", "evaluation={limit: 2, samples: 1}"]
    given = [
        "lm",
        "train",
        "tiny-lm/sft",
        f"model.path={adapter}",
        f"run.dir={tmp_path / 'run'}",
        *settings,
        *small,
    ]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    merged, _ = load_model(TextModel(path=str(adapter)))
    if train == "lora":
        refused(tmp_path / "run" / "checkpoints" / "checkpoint-1", "whose LoRA is not all that was changed")
    left = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(left[name], tensor, rtol=0, atol=1e-6)


def test_an_adapter_of_a_matrix_that_is_the_embeddings_too_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=60, tie_word_embeddings=True, **sizes)).save_pretrained(
        tmp_path / "tied"
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"])).save_pretrained(tmp_path / "adapter")
    tokenizer().save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's page about it
        refused(tmp_path / "adapter", "lm_head, whose matrix is the embedding's too, so it cannot be merged")


def test_an_adapter_whose_model_is_gone_says_so(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "./gone"}))
    refused(adapter, "an adapter of ./gone, cannot be loaded as a causal language model")
