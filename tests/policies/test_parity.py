"""Our sampler against stock diffusers pipelines of the same folder, float32: the difference is exactly 0.

Flux with true guidance is the exception: diffusers runs two forwards of n rows, we run one of 2n, and matrix
kernels round differently for another number of rows.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_flux, build_sd3

from imgrl.policies import Policy, load_policy
from imgrl.policies.flux import pack, unpack
from imgrl.policies.stock import open_stock_pipeline

PROMPT = "a red circle"


def generator(seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)]


def from_pipeline(pipe: Any, policy: Policy, **options: Any) -> torch.Tensor:
    out = pipe(PROMPT, generator=generator(3), output_type="latent", height=64, width=96, **options).images
    return unpack(out, 8, 12) if policy.family == "flux" else out


@pytest.mark.parametrize("length", [None, 0])
@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (2, 4.5), (10, 1.0), (10, 7.0)])
def test_sd3_latents_equal_the_stock_pipelines(
    folders: dict[str, Path], length: int | None, steps: int, guidance: float
) -> None:
    policy = load_policy(folders["sd3"], max_sequence_length=length)
    pipe = open_stock_pipeline(folders["sd3"])
    ours = policy.sample(
        policy.encode([PROMPT]), [3], steps=steps, weights="current", guidance=guidance, height=64, width=96
    )
    extra = {} if length is None else {"max_sequence_length": length}
    theirs = from_pipeline(pipe, policy, num_inference_steps=steps, guidance_scale=guidance, **extra)
    assert (ours - theirs).abs().max() == 0


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (10, 4.5)])
def test_folded_zero_tokens_change_nothing_but_rounding(
    folders: dict[str, Path], steps: int, guidance: float
) -> None:
    policy = load_policy(folders["sd3"], fold_zero_tokens=True)
    assert policy.encode([PROMPT]).tensors["prompt_embeds"].shape[1] < 256
    ours = policy.sample(
        policy.encode([PROMPT]), [3], steps=steps, weights="current", guidance=guidance, height=64, width=96
    )
    pipe = open_stock_pipeline(folders["sd3"])
    theirs = from_pipeline(pipe, policy, num_inference_steps=steps, guidance_scale=guidance)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_sd3_with_t5_equals_the_stock_pipeline(tmp_path: Path) -> None:
    build_sd3(t5=True, shift=1.0, qk_norm="rms_norm").save_pretrained(tmp_path)
    policy, pipe = load_policy(tmp_path, train="none"), open_stock_pipeline(tmp_path)
    ours = policy.sample(policy.encode([PROMPT]), [3], steps=3, guidance=2.0, height=64, width=96)
    theirs = from_pipeline(pipe, policy, num_inference_steps=3, guidance_scale=2.0)
    assert (ours - theirs).abs().max() == 0


@pytest.mark.parametrize("dev", [True, False])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_flux_latents_equal_the_stock_pipelines(tmp_path: Path, dev: bool, steps: int) -> None:
    build_flux(guidance_embeds=dev, dynamic_shifting=dev).save_pretrained(tmp_path)
    policy = load_policy(tmp_path, train="none", distilled_guidance=2.5 if dev else None)
    ours = policy.sample(policy.encode([PROMPT]), [3], steps=steps, height=64, width=96)
    pipe = open_stock_pipeline(tmp_path)
    theirs = from_pipeline(pipe, policy, num_inference_steps=steps, guidance_scale=2.5)
    assert (ours - theirs).abs().max() == 0


def test_flux_true_guidance_equals_the_stock_pipelines_to_rounding(folders: dict[str, Path]) -> None:
    policy, pipe = load_policy(folders["flux"], train="none"), open_stock_pipeline(folders["flux"])
    ours = policy.sample(policy.encode([PROMPT]), [3], steps=6, guidance=4.0, height=64, width=96)
    theirs = from_pipeline(pipe, policy, num_inference_steps=6, true_cfg_scale=4.0, negative_prompt="")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)


def test_images_equal_the_stock_pipelines(load: Any, folders: dict[str, Path], family: str) -> None:
    policy, pipe = load(family), open_stock_pipeline(folders[family])
    latents = policy.sample(policy.encode([PROMPT]), [3], steps=2, weights="current", height=64, width=96)
    length = {"max_sequence_length": policy.max_sequence_length}
    theirs = pipe(
        PROMPT,
        generator=generator(3),
        output_type="pt",
        height=64,
        width=96,
        num_inference_steps=2,
        guidance_scale=3.5 if family == "flux" else 1.0,
        **length,
    ).images
    ours = policy.decode(latents)
    assert ours.shape == (1, 3, 64, 96) and ours.dtype == torch.float32
    assert (ours - theirs).abs().max() == 0


def test_flux_packing_is_diffusers_packing() -> None:
    from diffusers import FluxPipeline

    x = torch.randn(2, 4, 6, 8)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpack(pack(x), 6, 8), x)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift_reproduces_the_schedulers_grid(folders: dict[str, Path], kind: str) -> None:
    policy = load_policy(folders["flux"], train="none")
    policy.scheduler.register_to_config(time_shift_type=kind)
    u = torch.linspace(1, 1 / 5, 5)
    s = policy.shift_at(64, 96)
    torch.testing.assert_close(policy.sigmas(5, 64, 96)[:-1], s * u / (1 + (s - 1) * u))


def test_static_shift_comes_from_the_scheduler(load: Any) -> None:
    policy = load("sd3")
    assert policy.shift == 3.0
    from imgrl import flow

    torch.testing.assert_close(policy.sigmas(10), flow.sigma_schedule(10, shift=3.0))
