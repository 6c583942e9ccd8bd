"""The watch over a LoRA against the matrices themselves: what is stored, what the adapter adds, by hand."""

import pytest
import torch
from small_lm import save

pytest.importorskip("peft")

from imgrl.policies.lora import LoraSpec  # noqa: E402
from imgrl.recipe_text import TextModel  # noqa: E402
from imgrl.training.text.arguments import peft_config  # noqa: E402
from imgrl.training.text.copies import WeightCopy  # noqa: E402
from imgrl.training.text.drift import drift_watch  # noqa: E402
from imgrl.training.text.models import load_model  # noqa: E402

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapted(lm, init):
    from peft import get_peft_model

    spec = TextModel(
        path=str(lm), train="lora", lora=LoraSpec(rank=3, alpha=6, targets="all-linear", init=init)
    )
    model, _ = load_model(spec)
    return get_peft_model(model, peft_config(spec, model))


@pytest.mark.parametrize("init", ["gaussian", "kaiming", "pissa"])
def test_the_watch_measures_the_whole_matrices(init, tmp_path):
    lm = save(tmp_path / "lm")
    model = adapted(lm, init)
    start = WeightCopy(model).tensors if init == "pissa" else {}
    watch = drift_watch(model, start=start)
    before = watch.measure()
    assert before["weights/relative_update"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    found = watch.measure()
    stored, _ = load_model(TextModel(path=str(lm)))
    merged = model.merge_and_unload()
    pairs = [
        (a.weight, merged.get_submodule(name).weight)
        for name, a in stored.named_modules()
        if name.endswith(LINEAR)
    ][::2]  # of fourteen matrices at most eight are watched, evenly
    assert len(pairs) == 7
    relative = torch.stack([(b - a).norm() / a.norm() for a, b in pairs]).mean()
    assert found["weights/relative_update"] == pytest.approx(float(relative.detach()), rel=1e-4)
    drift = [
        (torch.linalg.svdvals(b) - torch.linalg.svdvals(a)).norm() / torch.linalg.svdvals(a).norm()
        for a, b in pairs
    ]
    assert found["weights/spectral_drift"] == pytest.approx(
        float(torch.stack(drift).mean().detach()), rel=1e-3
    )


def test_without_an_adapter_the_parameters_are_watched(lm):
    model, _ = load_model(TextModel(path=str(lm)))
    watch = drift_watch(model, start={})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    assert watch.measure()["weights/relative_update"] == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("init", ["gaussian", "pissa"])
def test_layers_that_lie_transposed_as_gpt2_has_them(init, tmp_path):
    from peft import get_peft_model
    from small_lm import tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    lora = LoraSpec(rank=3, alpha=6, targets=("c_attn", "c_proj"), init=init)
    spec = TextModel(path=str(tmp_path), train="lora", lora=lora)
    stored, _ = load_model(spec)
    network, _ = load_model(spec)
    model = get_peft_model(network, peft_config(spec, network))
    watch = drift_watch(model, start=WeightCopy(model).tensors if init == "pissa" else {})
    assert watch.measure()["weights/relative_update"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    found = watch.measure()["weights/relative_update"]
    merged = model.merge_and_unload()
    pairs = [
        (a.weight, merged.get_submodule(name).weight)
        for name, a in stored.named_modules()
        if name.endswith(("c_attn", "c_proj"))
    ]
    relative = torch.stack([(b - a).norm() / a.norm() for a, b in pairs]).mean()
    assert found == pytest.approx(float(relative.detach()), rel=1e-4)
