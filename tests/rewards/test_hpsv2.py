"""HPSv2 on a small random open_clip model: the cosine, and the authors' preprocessing rebuilt with torchvision."""

import json

import pytest
import torch
from PIL import Image

open_clip = pytest.importorskip("open_clip")
from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms import functional as vision  # noqa: E402

from imgrl.errors import RewardError  # noqa: E402
from imgrl.rewards.hpsv2 import HPSv2  # noqa: E402
from imgrl.rewards.pixels import to_uint8  # noqa: E402
from imgrl.rewards.resolve import make  # noqa: E402

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
PROMPTS = ["a cat", "a red dog", "a cat"]
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small architecture that open_clip knows by name, and a file as the authors'."""
    folder = tmp_path_factory.mktemp("hps")
    (folder / "ViT-small-test.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / "ViT-small-test.json")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-small-test", pretrained=None, precision="fp32").eval()
    torch.save({"state_dict": model.state_dict(), "epoch": 1}, folder / "hps.pt")
    return folder / "hps.pt", model


def theirs(picture):
    """Longest side to 32, bicubic, then zeros around it, then tensor and normalisation."""
    scale = 32 / max(picture.size)
    size = [round(length * scale) for length in (picture.height, picture.width)]
    picture = vision.resize(picture, size, interpolation=InterpolationMode.BICUBIC)
    high, wide = 32 - size[0], 32 - size[1]
    picture = vision.pad(picture, [wide // 2, high // 2, wide - wide // 2, high - high // 2], fill=0)
    return vision.normalize(vision.to_tensor(picture), MEAN, STD)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 40), (20, 45)])
def test_the_formula(saved, noise, height, width):
    file, model = saved
    images = noise(3, height, width)
    pixels = torch.stack([theirs(Image.fromarray(levels)) for levels in to_uint8(images)])
    with torch.no_grad():
        seen = model.encode_image(pixels)
        read = model.encode_text(open_clip.get_tokenizer("ViT-small-test")(PROMPTS))
    cosine = (seen * read).sum(1) / seen.norm(dim=1) / read.norm(dim=1)
    reward = HPSv2(weights=str(file), architecture="ViT-small-test", device="cpu")
    scores = reward(images.requires_grad_(), PROMPTS)
    assert not scores.requires_grad
    torch.testing.assert_close(scores, cosine, atol=1e-5, rtol=0)
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)


def test_what_is_refused(saved, tmp_path):
    file, model = saved

    def build(weights, architecture="ViT-small-test"):
        return make("hpsv2", {"weights": str(weights), "architecture": architecture})

    with pytest.raises(RewardError, match="no weight file .*; download HPS_v2.1_compressed.pt from https://"):
        build(tmp_path / "absent.pt")
    with pytest.raises(RewardError, match="open_clip has no architecture 'ViT-none'"):
        build(file, "ViT-none")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(RewardError, match="has no table `state_dict`"):
        build(tmp_path / "bare.pt")
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "visual.proj"}
    torch.save({"state_dict": weights}, tmp_path / "part.pt")
    with pytest.raises(
        RewardError, match="does not hold HPSv2 weights of ViT-small-test: it lacks visual.proj;"
    ):
        build(tmp_path / "part.pt")
