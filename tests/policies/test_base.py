from typing import Any

import pytest
import torch
from torch import Tensor

from imgrl.errors import ConfigError
from imgrl.flow import StochasticSampler
from imgrl.policies.embeddings import select
from imgrl.types import Conditioning


def test_noise_depends_on_the_seed_alone(load: Any, family: str) -> None:
    policy = load(family)
    together = policy.initial_noise([5, 9, 2], 64, 64)
    for row, seed in enumerate([5, 9, 2]):
        assert torch.equal(together[row : row + 1], policy.initial_noise([seed], 64, 64))
    assert not torch.equal(together[0], together[1])
    reference = torch.randn(together.shape[1:], generator=torch.Generator().manual_seed(9))
    assert torch.equal(together[1], reference)


def test_an_image_does_not_depend_on_its_batch(load: Any, family: str) -> None:
    policy = load(family, train="none")
    cond = policy.encode(["a", "b", "c", "d", "e"])
    whole = policy.sample(cond, range(5), steps=3, guidance=2.0, height=64, width=64)
    split = policy.sample(cond, range(5), steps=3, guidance=2.0, height=64, width=64, batch=2)
    alone = policy.sample(select(cond, [3]), [3], steps=3, guidance=2.0, height=64, width=64)
    torch.testing.assert_close(whole, split, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[3:4], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(policy.decode(whole), policy.decode(whole, batch=2), rtol=0, atol=1e-5)


def test_random_steps_depend_on_the_seed_alone_and_vanish_with_their_noise(load: Any, family: str) -> None:
    policy = load(family, train="none")
    cond = policy.encode(["a", "b", "c"])
    size = {"height": 64, "width": 64}
    sampler = StochasticSampler(kind="cps", window=2)
    whole = policy.sample_path(cond, range(3), sampler=sampler, steps=5, start=0, **size)
    alone = policy.sample_path(select(cond, [1]), [1], sampler=sampler, steps=5, start=0, **size)
    for name in ("clean", "log_prob"):
        row = getattr(whole, name)[1:2] if name == "clean" else getattr(whole, name)[:, 1:2]
        torch.testing.assert_close(getattr(alone, name), row, rtol=0, atol=1e-4)
    assert torch.equal(whole.states[0], policy.initial_noise(range(3), 64, 64))
    ode = policy.sample(cond, range(3), steps=5, **size)
    quiet = StochasticSampler(kind="cps", window=2, noise_level=1e-6)
    calm = policy.sample_path(cond, range(3), sampler=quiet, steps=5, start=0, **size)
    torch.testing.assert_close(calm.clean, ode, rtol=0, atol=1e-3)
    assert (whole.clean - ode).abs().max() > 0.1


def test_decoding_in_bfloat16_is_close_and_comes_back_as_float32(load: Any, family: str) -> None:
    policy = load(family, train="none")
    latents = policy.initial_noise(range(3), 64, 64)
    exact = policy.decode(latents)
    policy.vae_dtype = torch.bfloat16
    near = policy.decode(latents)
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0, atol=0.05)
    assert next(policy.vae.parameters()).dtype == torch.float32


def test_velocity_is_float32_and_takes_one_sigma_or_many(load: Any, example: Any, family: str) -> None:
    policy = load(family)
    x, sigma, cond = example(policy)
    each = policy.velocity(x, sigma, cond)
    assert each.dtype == torch.float32 and each.shape == x.shape
    for row in range(2):
        alone = policy.velocity(x[row : row + 1], float(sigma[row]), select(cond, [row]))
        torch.testing.assert_close(each[row : row + 1], alone, rtol=0, atol=2e-6)
    assert torch.equal(policy.velocity(x, 0.5, cond), policy.velocity(x, torch.tensor([0.5, 0.5]), cond))


def test_guidance_combines_the_two_predictions(load: Any, example: Any, family: str) -> None:
    policy = load(family)
    x, sigma, cond = example(policy)
    negative = policy.encode(["blurry"])
    both = policy.encode(["blurry", "blurry"])
    plain, away = policy.velocity(x, sigma, cond), policy.velocity(x, sigma, both)
    guided = policy.velocity(x, sigma, cond, guidance=4.5, negative=negative)
    torch.testing.assert_close(guided, away + 4.5 * (plain - away), rtol=0, atol=2e-5)
    assert torch.equal(guided, policy.velocity(x, sigma, cond, guidance=4.5, negative=both))
    empty = policy.velocity(x, sigma, cond, guidance=2.0, negative=policy.encode([""]))
    assert torch.equal(policy.velocity(x, sigma, cond, guidance=2.0), empty)


def test_guidance_one_runs_a_single_forward(load: Any, example: Any) -> None:
    policy = load("sd3")
    x, sigma, cond = example(policy)
    rows: list[int] = []
    policy.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    policy.velocity(x, sigma, cond)
    policy.velocity(x, sigma, cond, guidance=2.0)
    assert rows == [2, 4]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_low_precision_stays_close_and_keeps_float32_outside(
    load: Any, example: Any, family: str, dtype: str
) -> None:
    policy, exact = load(family, dtype=dtype), load(family)
    x, sigma, cond = example(exact)
    low = policy.velocity(x, sigma, policy.encode(["shape 0", "shape 1"]))
    reference = exact.velocity(x, sigma, cond)
    assert low.dtype == torch.float32
    assert (low - reference).abs().max() < 0.05 * reference.abs().max()
    assert not torch.equal(low, reference)
    assert policy.decode(x).dtype == torch.float32 and next(policy.vae.parameters()).dtype == torch.float32


def test_samples_can_be_trained_on(load: Any, family: str) -> None:
    policy = load(family)
    cond = policy.encode(["a"])
    clean = policy.sample(cond, [0], steps=1, weights="current", height=64, width=64)
    assert not clean.is_inference() and not clean.requires_grad
    policy.velocity(clean, 0.5, cond).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.weights.parameters())


def gradients(policy: Any, example: Any) -> list[Tensor]:
    x, sigma, cond = example(policy)
    policy.velocity(x, sigma, cond).square().mean().backward()
    with policy.weights.use("frozen"):
        pass
    return [p.grad for p in policy.weights.parameters()]


@pytest.mark.parametrize("train", ["lora", "full"])
def test_gradient_checkpointing_changes_nothing(load: Any, example: Any, family: str, train: str) -> None:
    plain = gradients(load(family, train=train, names=["frozen"]), example)
    saved = gradients(load(family, train=train, names=["frozen"], gradient_checkpointing=True), example)
    for a, b in zip(plain, saved, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_velocity(load: Any, example: Any, family: str) -> None:
    plain, compiled = load(family, names=["old"]), load(family, names=["old"], compile=True)
    x, sigma, cond = example(plain)
    for weights in ("current", "old", "frozen"):
        ours, theirs = (p.velocity(x, sigma, cond, weights=weights) for p in (plain, compiled))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert set(plain.weights.state_dict()) == set(compiled.weights.state_dict())


def test_decoding_inverts_encoding_in_scale(load: Any, family: str) -> None:
    policy = load(family)
    latents = policy.to_latents(torch.rand(3, 3, 64, 64), batch=2)
    assert latents.shape == (3, *policy.latent_shape(64, 64))
    stock = policy.vae.config
    raw = policy.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode()
    grey = policy.to_latents(torch.full((1, 3, 64, 64), 0.5))
    torch.testing.assert_close(grey, (raw - stock.shift_factor) * stock.scaling_factor)


def test_wrong_inputs_are_refused_in_one_sentence(load: Any, example: Any) -> None:
    policy = load("sd3")
    x, sigma, cond = example(policy)
    with pytest.raises(ValueError, match="needs latents"):
        policy.velocity(x[0], sigma, cond)
    with pytest.raises(ValueError, match="2 latents but embeddings of 1"):
        policy.velocity(x, sigma, select(cond, [0]))
    with pytest.raises(ValueError, match="guidance must be at least 1"):
        policy.velocity(x, sigma, cond, guidance=0.5)
    with pytest.raises(ValueError, match="sigma must be one number"):
        policy.velocity(x, torch.ones(3), cond)
    with pytest.raises(ValueError, match="one seed per prompt"):
        policy.sample(cond, [1], steps=1, weights="current")
    with pytest.raises(ValueError, match="negative embeddings"):
        policy.velocity(x, sigma, cond, guidance=2.0, negative=policy.encode(["a", "b", "c"]))
    with pytest.raises(ConfigError, match="multiples of 16"):
        policy.initial_noise([0], 40, 64)
    with pytest.raises(ConfigError, match="at least 1 step"):
        policy.sigmas(0)


def test_select_keeps_rows_in_order() -> None:
    cond = Conditioning(tensors={"a": torch.arange(4)})
    assert select(cond, [2, 0]).tensors["a"].tolist() == [2, 0]
