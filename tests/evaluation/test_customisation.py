"""The figures of a customised model: by closed form, and on a tiny model whose LoRA does something."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import build_sd3

from imgrl.data import load_prompts
from imgrl.evaluation.customisation import STRENGTHS, Sides, content_kept, measure_style
from imgrl.evaluation.protocol import Protocol
from imgrl.policies import load_policy
from imgrl.policies.lora import LoraSpec


def test_content_is_kept_under_a_shift_that_all_images_share():
    base = torch.eye(3)
    assert content_kept(base + 7, base) == 1


def test_content_is_lost_where_images_are_swapped():
    base = torch.eye(3)
    assert content_kept(base.roll(1, 0), base) == 0
    assert content_kept(base[[1, 0, 2]], base) == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_sd3().save_pretrained(folder)
    policy = load_policy(folder, lora=LoraSpec(rank=2, alpha=2), dtype="fp32", device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in policy.weights.tensors("current").values():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return policy


def test_strength_0_is_the_base_model_and_the_weights_are_put_back(policy, tmp_path):
    def see(images):
        flat = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2)
        return flat.flatten(1), flat

    before = {name: tensor.clone() for name, tensor in policy.weights.state_dict("current").items()}
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8))
    protocol = Protocol(images_per_prompt=2, steps=2, batch=4, height=32, width=32)
    found = measure_style(
        policy,
        load_prompts(["a cat", "a dog", "a cow"]),
        Sides(train=noise[:8], heldout=noise[8:]),
        protocol=protocol,
        see=see,
        picture=tmp_path / "grid.png",
    )
    assert list(found) == [f"{strength:g}" for strength in STRENGTHS]
    assert found["0"]["content"] == 1
    assert all(np.isfinite(value) for figures in found.values() for value in figures.values())
    after = policy.weights.state_dict("current")
    assert all(torch.equal(before[name], after[name]) for name in before)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (3 * 34 - 2, 3 * 34 - 2, 3)
    first, half, full = sheet[:32, :32], sheet[:32, 34:66], sheet[:32, 68:]
    near, far = (np.abs(first.astype(int) - other.astype(int)).mean() for other in (half, full))
    assert 0 < near < far  # half of the LoRA does something, and less than the whole
