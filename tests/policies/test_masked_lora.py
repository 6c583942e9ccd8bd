"""A LoRA under a mask: what peft is expected to do, and the same update written out densely."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from imgrl.analysis.masks import training_mask
from imgrl.errors import ConfigError
from imgrl.policies import LoraSpec
from imgrl.policies.masked_lora import change, confine, merged_state

ROWS, COLUMNS, RANK = 12, 10, 3


def wrapped(layer, *names, scale=2.0, **settings):
    """A layer under peft with factors that do something, and its stored weight."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": layer}).double()
    stored = layer.weight.detach().clone()
    config = LoraConfig(r=RANK, lora_alpha=scale * RANK, target_modules=["layer"], **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are the point
        for name in names or ("default",):
            inject_adapter_in_model(config, model, name)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_" in name:
            nn.init.normal_(parameter.data)
    return model, model["layer"], stored


def a_mask(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4


def factors(layer, name="default"):
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def test_outputs_and_gradients_are_those_of_the_update_written_out():
    model, layer, stored = wrapped(nn.Linear(COLUMNS, ROWS))
    mask = a_mask(stored.shape)
    confine(layer, mask, "default")
    x = torch.randn(5, COLUMNS, dtype=torch.float64, requires_grad=True)
    a, b = factors(layer)
    by_hand = x @ (stored + mask * (2.0 * b @ a)).T + layer.get_base_layer().bias
    expected = torch.autograd.grad(by_hand.square().sum(), [x, a, b])
    out = layer(x)
    torch.testing.assert_close(out, by_hand)
    for found, wanted in zip(torch.autograd.grad(out.square().sum(), [x, a, b]), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_transposed_layer_of_gpt2():
    from transformers.pytorch_utils import Conv1D

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it by itself, and says so
        _, layer, stored = wrapped(Conv1D(ROWS, COLUMNS), fan_in_fan_out=True)
    assert stored.shape == (COLUMNS, ROWS)
    mask = a_mask(stored.shape)
    confine(layer, mask, "default")
    a, b = factors(layer)
    x = torch.randn(5, COLUMNS, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ (stored + mask * (2.0 * b @ a).T) + layer.get_base_layer().bias)


@pytest.mark.parametrize("safe", [True, False])
def test_peft_merges_what_the_mask_allows_and_takes_it_out_again(safe):
    _, layer, stored = wrapped(nn.Linear(COLUMNS, ROWS))
    mask = a_mask(stored.shape)
    confine(layer, mask, "default")
    x = torch.randn(5, COLUMNS, dtype=torch.float64)
    before = layer(x).detach()
    layer.merge(safe_merge=safe)
    weight = layer.get_base_layer().weight.detach().clone()
    a, b = factors(layer)
    torch.testing.assert_close(weight, stored + mask * (2.0 * b @ a))
    assert torch.equal(weight[~mask], stored[~mask]) and (weight[mask] != stored[mask]).all()
    torch.testing.assert_close(layer(x), before)
    layer.unmerge()
    torch.testing.assert_close(layer.get_base_layer().weight, stored)


def test_switched_off_the_stored_layer_is_what_it_was():
    _, layer, stored = wrapped(nn.Linear(COLUMNS, ROWS))
    confine(layer, a_mask(stored.shape), "default")
    x = torch.randn(5, COLUMNS, dtype=torch.float64)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), nn.functional.linear(x, stored, layer.get_base_layer().bias))


def test_adapters_beside_each_other_share_the_mask_and_the_network_becomes_stock():
    model, layer, stored = wrapped(nn.Linear(COLUMNS, ROWS), "one", "two")
    mask = a_mask(stored.shape)
    confine(layer, mask, "one")
    confine(layer, None, "two")
    layer.set_adapter(["one", "two"])
    (a, b), (c, d) = factors(layer, "one"), factors(layer, "two")
    whole = stored + mask * (2.0 * (b @ a + d @ c))
    x = torch.randn(5, COLUMNS, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ whole.T + layer.get_base_layer().bias)
    plain = nn.ModuleDict({"layer": nn.Linear(COLUMNS, ROWS)}).double()
    plain.load_state_dict(dict(merged_state(model, ["one", "two"])))  # float32 on the way
    torch.testing.assert_close(plain["layer"].weight.detach(), whole.detach(), rtol=1e-6, atol=1e-6)


def test_the_update_has_more_directions_than_its_factors():
    _, layer, stored = wrapped(nn.Linear(COLUMNS, ROWS))
    assert torch.linalg.matrix_rank(change(layer, "default")) == RANK
    confine(layer, a_mask(stored.shape), "default")
    assert torch.linalg.matrix_rank(change(layer, "default")) > 2 * RANK


def test_no_product_is_kept_for_the_backward_pass():
    _, layer, stored = wrapped(nn.Linear(COLUMNS, ROWS))
    confine(layer, a_mask(stored.shape), "default")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(torch.randn(5, COLUMNS, dtype=torch.float64))
    products = [shape for shape in kept if shape.numel() == stored.numel()]
    plain = copy.deepcopy(layer)
    plain.lora_variant.clear()
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        plain(torch.randn(5, COLUMNS, dtype=torch.float64))
    assert len(products) <= len([shape for shape in kept if shape.numel() == stored.numel()])


def test_an_embedding_is_refused():
    _, layer, stored = wrapped(nn.Embedding(ROWS, COLUMNS))
    with pytest.raises(ConfigError, match="linear layers only, but model.lora.targets names a Embedding"):
        confine(layer, a_mask(stored.shape), "default")


@pytest.mark.parametrize("init", ["gaussian", "pissa"])
def test_a_confined_policy_is_exported_as_a_whole_pipeline(
    load, disturb, example, folders, family, tmp_path, init
):
    policy = load(family, lora=LoraSpec(rank=4, alpha=6, init=init), mask="safe", names=["old"])
    x, sigma, cond = example(policy)
    torch.testing.assert_close(
        policy.velocity(x, sigma, cond), policy.velocity(x, sigma, cond, weights="frozen"), rtol=0, atol=1e-5
    )
    disturb(policy)
    manifest = policy.export(tmp_path / "model")
    assert manifest.kind == "full" and manifest.velocity_error < 1e-5 and manifest.velocity_change > 0.05
    base, trained = (
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        for folder in (folders[family], tmp_path / "model")
    )
    assert base.keys() == trained.keys()
    layers = policy.weights.stored()
    for name, before in base.items():
        path = name.removesuffix(".weight")
        may = training_mask(before, "safe") if path in layers else torch.zeros_like(before, dtype=torch.bool)
        assert torch.equal(trained[name][~may], before[~may])
        if path in layers:
            assert (trained[name][may] != before[may]).float().mean() > 0.99
            torch.testing.assert_close(policy.weights.changed("current", path), trained[name])
            torch.testing.assert_close(policy.weights.changed("old", path), before)
            assert torch.equal(policy.weights.changed("frozen", path), before)


def test_a_random_mask_is_of_its_seed(load):
    policies = [load("sd3", mask="random", mask_seed=seed) for seed in (0, 0, 1)]
    path = next(iter(policies[0].weights.stored()))
    one, same, other = (policy.transformer.get_submodule(path).may_change for policy in policies)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_compiled_blocks_give_the_same(load, disturb, example):
    plain, compiled = load("sd3", mask="low"), load("sd3", mask="low", compile=True)
    disturb(plain)
    compiled.weights.load_state_dict("current", plain.weights.state_dict())
    x, sigma, cond = example(plain)
    found = []
    for policy in (plain, compiled):
        velocity = policy.velocity(x, sigma, cond)
        velocity.square().sum().backward()
        found.append((velocity.detach(), [p.grad for p in policy.weights.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
