"""PiSSA against peft: the model at its start, the LoRA a run leaves behind, and a start that another machine had."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from small_lm import cut_short
from torch import nn
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from imgrl.cli.main import app
from imgrl.errors import ConfigError
from imgrl.training.text.pissa import check_directions, is_pissa, start_from

IDS = torch.tensor([[5, 9, 14, 3, 22, 30, 7, 11]])


def train(lm, folder, *changes, resume=False):
    lora = ["model.train=lora", "model.lora.rank=3", "model.lora.alpha=6", "optimizer.lr=1e-2"]
    small = ["data.count=8", "batch.groups=4", "generation.max_tokens=4", "evaluation={limit: 2, samples: 1}"]
    given = ["tiny-lm/asft", f"model.path={lm}", f"run.dir={folder}", *lora, *small, "checkpoint.every=2"]
    command = ["--resume", str(folder), *changes] if resume else [*given, *changes]
    result = CliRunner().invoke(app, ["lm", "train", *command])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def logits(base, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        return (model if adapter is None else PeftModel.from_pretrained(model, adapter).eval())(IDS).logits


@pytest.fixture(scope="module")
def whole(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pissa") / "whole"
    return folder, train(lm, folder, "model.lora.init=pissa", "run.steps=4")


def test_it_starts_at_the_base_and_leaves_a_plain_lora_of_the_stored_one(lm, whole, tmp_path):
    folder, losses = whole
    plain = train(lm, tmp_path / "plain", "model.lora.init=gaussian", "run.steps=2")
    assert losses[0] == pytest.approx(plain[0], rel=1e-4)  # the loss of the base, whose KL to itself is 0
    trained = logits(lm, folder / "checkpoints" / "checkpoint-4")  # as peft opens PiSSA again
    assert (trained - logits(lm)).abs().max() > 0.1
    torch.testing.assert_close(logits(lm, folder / "model"), trained, rtol=0, atol=1e-4)
    config = json.loads((folder / "model" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (6, 12, True)


def test_a_resumed_run_ends_in_the_same_weights(whole, tmp_path):
    folder, losses = whole
    cut = cut_short(folder, tmp_path / "cut", last=4)
    assert train(None, cut, resume=True) == losses
    ours, theirs = (load_file(f / "model" / "adapter_model.safetensors") for f in (cut, folder))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def adapted(rank=3):
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=6, target_modules=["0"], init_lora_weights="pissa")
    return get_peft_model(nn.Sequential(nn.Linear(8, 5)), config)


@torch.no_grad()
def test_another_start_leaves_what_the_saved_factors_mean():
    x, model = torch.randn(4, 8), adapted()
    layer = model.base_model.model[0]
    now = {k: p.clone() for k, p in model.named_parameters() if ".lora_" in k}
    stored = layer.base_layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    before = layer.base_layer.weight.clone()
    start_from(model, now, now)
    assert torch.equal(layer.base_layer.weight, before)
    saved = {k: t + 0.1 for k, t in now.items()}
    start_from(model, now, saved)
    model.load_state_dict(
        saved, strict=False
    )  # at its start, the run of the other machine was the stored model
    torch.testing.assert_close(model(x), x @ stored.T + layer.base_layer.bias)


def test_a_rank_without_as_many_directions_is_refused():
    model = adapted(rank=6)
    assert is_pissa(model)
    with pytest.raises(ConfigError, match="rank, 6, but base_model.model.0 has only 5; lower the rank"):
        check_directions(model)
