"""`imgrl sample` on a stock pipeline, against that pipeline's own __call__."""

import json

import numpy as np
import pytest
import torch
from PIL import Image


def test_sample_equals_the_stock_pipeline(imgrl, sd3_folder, tmp_path):
    from imgrl.policies.stock import open_stock_pipeline

    result = imgrl("sample", "a cat", "--model", sd3_folder, "--seeds", "3", "--steps", "2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"file": "samples.png", "prompts": ["a cat"], "seeds": [3]}
    stock = open_stock_pipeline(sd3_folder)(
        "a cat", num_inference_steps=2, guidance_scale=1.0, generator=torch.Generator().manual_seed(3)
    ).images[0]
    ours = np.asarray(Image.open(tmp_path / "samples.png"), dtype=int)
    assert np.abs(ours - np.asarray(stock, dtype=int)).max() <= 1  # one grey level of rounding


def test_a_lora_of_any_rank_is_read_from_its_folder(imgrl, sd3_folder, tmp_path):
    from imgrl.policies import LoraSpec, load_policy

    policy = load_policy(sd3_folder, lora=LoraSpec(rank=3, alpha=7.0))
    with torch.no_grad():
        for tensor in policy.weights.tensors("current").values():
            tensor.normal_(generator=torch.Generator().manual_seed(1))
    policy.export(tmp_path / "run" / "lora")
    from imgrl.cli.models import load_for_sampling, sampling_settings

    settings = sampling_settings(str(sd3_folder), tmp_path / "run")
    loaded = load_for_sampling(settings, tmp_path / "run", device="cpu")
    cond, x = policy.encode(["a dog"]), policy.initial_noise([0])
    expected = policy.velocity(x, 0.5, cond)
    torch.testing.assert_close(loaded.velocity(x, 0.5, cond), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(policy.velocity(x, 0.5, cond, weights="frozen"), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--model", "nowhere/at-all/here"], "does not exist"),
        (["--lora", "nowhere"], "there is no LoRA at nowhere"),
        (["--seeds", "x"], "--seeds must be whole numbers"),
        (["--out", "picture.jpg"], "--out must end in .png"),
        (["--solver", "heun"], "--solver must be euler or dpm2"),
        (["--device", "cuda:97"], "device 'cuda:97' cannot be used here"),
        (["--dtype", "fp8"], "dtype must be"),
    ],
)
def test_refused(refused, sd3_folder, arguments, part):
    model = [] if "--model" in arguments else ["--model", sd3_folder]
    assert part in refused("sample", "a cat", *model, *arguments)


def test_an_out_file_that_cannot_be_written_is_refused_first(refused, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in refused("sample", "a cat", "--out", "file/x.png", "--model", "nowhere")


def test_a_corrupt_lora_is_refused(refused, sd3_folder, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not tensors")
    assert "is not a safetensors file" in refused(
        "sample", "a cat", "--model", sd3_folder, "--lora", "x.safetensors"
    )
