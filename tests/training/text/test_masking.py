"""A language model's LoRA under a mask: what a run leaves behind, resumed or not, and what cannot be masked."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_lm import cut_short
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from imgrl.analysis.masks import training_mask
from imgrl.cli.main import app
from imgrl.errors import ConfigError
from imgrl.training.text.masking import confine_adapter, matrices

IDS = torch.tensor([[5, 9, 14, 3, 22, 30, 7, 11]])


def train(lm, folder, *changes, resume=False):
    lora = [
        "model.train=lora",
        "model.lora.rank=3",
        "model.lora.alpha=6",
        "optimizer.lr=1e-2",
        "model.mask=low",
    ]
    small = ["data.count=8", "batch.groups=4", "generation.max_tokens=4"]
    more = ["evaluation={limit: 2, samples: 1, every: 2, kl: true}", "checkpoint.every=2", "run.steps=4"]
    given = ["tiny-lm/asft", f"model.path={lm}", f"run.dir={folder}", *lora, *small, *more]
    command = ["--resume", str(folder), *changes] if resume else [*given, *changes]
    result = CliRunner().invoke(app, ["lm", "train", *command])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(rows):
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module", params=["gaussian", "pissa"])
def whole(request, lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked") / "whole"
    return folder, train(lm, folder, f"model.lora.init={request.param}")


def test_a_run_leaves_a_stock_model_whose_other_entries_keep_their_bits(lm, whole):
    folder, rows = whole
    assert not list((folder / "model").glob("adapter*"))
    base, trained = load_file(lm / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert base.keys() == trained.keys()
    changed = 0
    for name, before in base.items():
        linear = "_proj.weight" in name
        may = training_mask(before, "low") if linear else torch.zeros_like(before, dtype=torch.bool)
        assert torch.equal(trained[name][~may], before[~may])
        changed += int((trained[name] != before).sum())
    assert changed > 1000
    assert AutoModelForCausalLM.from_pretrained(folder / "model")(IDS).logits.isfinite().all()
    assert losses(rows)[-1] != losses(rows)[0]


def test_drift_is_measured_from_the_stored_weights(whole):
    _, rows = whole
    first = next(row for row in rows if "heldout/kl_to_base" in row)
    assert first["heldout/kl_to_base"] == pytest.approx(0, abs=1e-6)
    sparsity = [row["weights/sparsity"] for row in rows if "weights/sparsity" in row]
    assert sparsity and all(0.45 <= value < 1 for value in sparsity)


def test_a_resumed_run_ends_in_the_same_weights(whole, tmp_path):
    folder, rows = whole
    cut = cut_short(folder, tmp_path / "cut", last=4)
    assert losses(train(None, cut, resume=True)) == losses(rows)
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (cut, folder))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_policy_samples_and_learns_with_one(lm, tmp_path):
    length = tmp_path / "length.py"
    length.write_text("def length(texts, prompts):\n    return [float(len(text) % 7) for text in texts]\n")
    settings = ["model.mask=safe", "model.train=lora", "model.lora.rank=2", "objective.kl_weight=0.1"]
    settings += ["batch={groups: 2, group_size: 2}", "generation.max_tokens=4", "run.steps=2", "data.count=8"]
    settings += [f"rewards={{length: {{use: '{length}:length'}}}}", "evaluation={limit: 2, samples: 1}"]
    given = [
        "tiny-lm/grpo",
        f"model.path={lm}",
        f"run.dir={tmp_path / 'run'}",
        *settings,
        "checkpoint.every=0",
    ]
    result = CliRunner().invoke(app, ["lm", "train", *given])
    assert result.exit_code == 0, result.output
    base, trained = (load_file(part / "model.safetensors") for part in (lm, tmp_path / "run" / "model"))
    name = "model.layers.0.self_attn.q_proj.weight"
    may = training_mask(base[name], "safe")
    assert torch.equal(trained[name][~may], base[name][~may]) and not torch.equal(trained[name], base[name])


def test_a_matrix_that_is_the_embeddings_too_is_refused(lm):
    model = AutoModelForCausalLM.from_pretrained(lm)
    model.tie_weights()
    model.lm_head.weight = model.get_input_embeddings().weight
    before = matrices(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(
        ConfigError, match="cannot confine a LoRA on lm_head, whose matrix is the embedding's too"
    ):
        confine_adapter(adapted, "low", before=before, seed=0)
