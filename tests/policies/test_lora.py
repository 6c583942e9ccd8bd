import math
from typing import Any

import pytest
import torch

from imgrl.errors import ConfigError
from imgrl.policies import LoraSpec


def layers(policy: Any) -> set[str]:
    return {path.split(".lora_")[0] for path in policy.weights.state_dict()}


def test_default_targets_are_the_published_lists(load: Any) -> None:
    sd3 = layers(load("sd3"))
    assert len(sd3) == 8 + 7  # the last of two blocks has no text output
    assert all(".attn." in path for path in sd3)
    flux = layers(load("flux"))
    assert len(flux) == 12 + 3  # one double block; q, k, v of one single block
    assert any(path.endswith("ff_context.net.2") for path in flux)


def test_all_linear_takes_every_linear_layer_of_the_blocks(load: Any, family: str) -> None:
    policy = load(family, lora=LoraSpec(rank=2, alpha=2, targets="all-linear"))
    blocks = [policy.transformer.transformer_blocks]
    if family == "flux":
        blocks.append(policy.transformer.single_transformer_blocks)
    base = load(family, train="none").transformer
    linear = {n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and "blocks." in n}
    assert layers(policy) == linear
    assert not any("lora" in name for name, _ in policy.transformer.proj_out.named_parameters())


def test_start_changes_nothing_and_is_the_same_for_everyone(load: Any, example: Any, family: str) -> None:
    torch.manual_seed(1)
    one = load(family)
    torch.manual_seed(2)
    two, other = load(family), load(family, lora=LoraSpec(rank=4, alpha=6, seed=7))
    x, sigma, cond = example(one)
    assert torch.equal(one.velocity(x, sigma, cond), one.velocity(x, sigma, cond, weights="frozen"))
    assert all(torch.equal(t, two.weights.state_dict()[k]) for k, t in one.weights.state_dict().items())
    assert any(not torch.equal(t, other.weights.state_dict()[k]) for k, t in one.weights.state_dict().items())


@pytest.mark.parametrize(("init", "deviation"), [("gaussian", 1 / 4), ("kaiming", 1 / math.sqrt(3 * 32))])
def test_a_starts_with_the_stated_deviation(load: Any, init: str, deviation: float) -> None:
    policy = load("sd3", lora=LoraSpec(rank=4, alpha=6, init=init))  # pyright: ignore[reportArgumentType]
    a = torch.cat([t.flatten() for k, t in policy.weights.state_dict().items() if ".lora_A." in k])
    assert float(a.std()) == pytest.approx(deviation, rel=0.05)
    assert not any(t.any() for k, t in policy.weights.state_dict().items() if ".lora_B." in k)


def test_the_update_is_alpha_over_rank_b_a(load: Any) -> None:
    policy = load("sd3")
    with torch.no_grad():
        for tensor in policy.weights.parameters():
            tensor.normal_(generator=torch.Generator().manual_seed(0))
    layer = policy.transformer.transformer_blocks[0].attn.to_q
    x = torch.randn(3, 32)
    a, b = (layer.lora_A["current"].weight, layer.lora_B["current"].weight)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 6 / 4 * x @ a.T @ b.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_adapters_are_float32_masters(load: Any, dtype: str) -> None:
    policy = load("sd3", dtype=dtype, names=["old"])
    for name in ("current", "old"):
        assert {t.dtype for t in policy.weights.tensors(name).values()} == {torch.float32}
    assert policy.transformer.proj_out.weight.dtype == policy.dtype
    x = policy.initial_noise([0], 64, 64)
    policy.velocity(x, 0.5, policy.encode(["a"])).square().mean().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in policy.weights.parameters())


def pissa(rank: int = 4, **options: Any) -> LoraSpec:
    return LoraSpec(rank=rank, alpha=6, init="pissa", **options)


def test_pissa_starts_at_the_leading_part_and_changes_nothing(load: Any, example: Any, family: str) -> None:
    policy = load(family, lora=pissa())
    x, sigma, cond = example(policy)
    stock = load(family, train="none").velocity(x, sigma, cond)
    assert torch.equal(policy.velocity(x, sigma, cond, weights="frozen"), stock)
    assert torch.equal(policy.velocity(x, sigma, cond, weights="initial"), stock)
    torch.testing.assert_close(policy.velocity(x, sigma, cond).detach(), stock.detach(), rtol=1e-4, atol=1e-5)
    path = next(iter(layers(policy)))
    base = policy.transformer.get_submodule(path).base_layer.weight
    a, b = (policy.weights.tensors()[f"{path}.lora_{part}.weight"].detach() for part in "AB")
    left, values, right = torch.linalg.svd(base, full_matrices=False)
    torch.testing.assert_close(6 / 4 * b @ a, left[:, :4] * values[:4] @ right[:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))  # each has the square root of the values


def test_pissa_trains_the_weights_without_the_leading_part_and_scales_what_changed(
    load: Any, disturb: Any
) -> None:
    policy = load("sd3", lora=pissa(), names=["old"])
    disturb(policy)
    path = "transformer_blocks.0.attn.to_q"
    layer, x = policy.transformer.get_submodule(path), torch.randn(3, 32)
    now, start = (policy.weights.tensors(name) for name in ("current", "initial"))
    products = [t[f"{path}.lora_B.weight"] @ t[f"{path}.lora_A.weight"] for t in (now, start)]
    update, close = (6 / 4 * (products[0] - products[1])).detach(), {"rtol": 1e-4, "atol": 1e-4}
    assert update.abs().max() > 0.1
    kept = {k: t.clone() for k, t in policy.weights.state_dict().items()}
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ update.T, **close)
    policy.weights.scale("current", 0.25)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 0.25 * x @ update.T, **close)
    with policy.weights.use("old"):
        torch.testing.assert_close(layer(x), layer.base_layer(x), **close)
    policy.weights.load_state_dict("current", kept)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ update.T, **close)
    policy.weights.copy("frozen", "current")
    torch.testing.assert_close(layer(x), layer.base_layer(x), **close)


def test_pissa_follows_the_start_that_it_is_given(load: Any, disturb: Any, example: Any) -> None:
    """As on a machine whose decomposition chose other directions: a checkpoint brings its own."""
    one, two = load("sd3", lora=pissa()), load("sd3", lora=pissa())
    disturb(one, 0.1)
    moved = {k: t + 0.01 for k, t in one.weights.state_dict("initial").items()}
    one.weights.load_state_dict("initial", moved)
    for name in ("current", *one.weights.lasting):
        two.weights.load_state_dict(name, one.weights.state_dict(name))
    x, sigma, cond = example(one)
    assert torch.equal(two.velocity(x, sigma, cond), one.velocity(x, sigma, cond))


def test_pissa_needs_as_many_directions_as_its_rank(load: Any) -> None:
    with pytest.raises(ConfigError, match="has only 32: lower the rank"):
        load("sd3", lora=pissa(rank=33))


def test_wrong_settings_are_refused(load: Any) -> None:
    with pytest.raises(ConfigError, match="'attn.nothing' matches no linear layer"):
        load("sd3", lora=LoraSpec(targets=("attn.to_q", "attn.nothing")))
    with pytest.raises(ConfigError, match="rank >= 1"):
        LoraSpec(rank=0)
    with pytest.raises(ConfigError, match="targets must be"):
        LoraSpec(targets="everything")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="init must be"):
        LoraSpec(init="zero")  # pyright: ignore[reportArgumentType]
