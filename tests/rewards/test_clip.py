"""CLIP rewards on a small random model: the formulas recomputed from its parts, with Pillow's preprocessing."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from imgrl.errors import RewardError
from imgrl.rewards import RewardSet
from imgrl.rewards.aesthetic import Aesthetic
from imgrl.rewards.clip import ClipCosine, PickScore, clip_tower
from imgrl.rewards.pixels import to_uint8
from imgrl.rewards.resolve import make

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
PROMPTS = ["a cat", "a red dog", "a cat", "x" * 60]  # the last is longer than the model's 16 tokens


@pytest.fixture(autouse=True)
def fresh():
    clip_tower.cache_clear()


@pytest.fixture(scope="module")
def model(clip_folder):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(clip_folder).eval()


def by_hand(model, folder, images, prompts):
    """Unit vectors of images and prompts, from the towers, their projections, and Pillow."""
    from transformers import CLIPTokenizer

    pixels = []
    for levels in to_uint8(images):
        picture = Image.fromarray(levels)
        scale = 32 / min(picture.size)
        width, height = int(picture.width * scale), int(picture.height * scale)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - 32) // 2, (height - 32) // 2
        cut = np.asarray(picture.crop((left, top, left + 32, top + 32))) / 255
        pixels.append(torch.tensor((cut - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    with torch.no_grad():
        seen = model.vision_model(torch.stack(pixels)).pooler_output @ model.visual_projection.weight.T
        read = []
        for prompt in prompts:  # one at a time: no padding
            ids = tokenizer(prompt, truncation=True, max_length=16, return_tensors="pt").input_ids
            read.append(model.text_model(ids).pooler_output[0] @ model.text_projection.weight.T)
    return [x / x.norm(dim=-1, keepdim=True) for x in (seen, torch.stack(read))]


@pytest.mark.parametrize(("height", "width", "tolerance"), [(32, 32, 1e-5), (48, 64, 0.01)])
def test_the_formulas(clip_folder, model, noise, height, width, tolerance):
    """At the model's size to rounding; resized, as far as Pillow's kernel and torchvision's agree on noise."""
    images = noise(4, height, width)
    seen, read = by_hand(model, clip_folder, images, PROMPTS)
    cosine = (seen * read).sum(1)
    assert cosine.std() > 0.05  # so that the comparison says something
    scores = ClipCosine(model=str(clip_folder), device="cpu")(images, PROMPTS)
    torch.testing.assert_close(scores, cosine, atol=tolerance, rtol=0)
    pick = PickScore(model=str(clip_folder), processor=str(clip_folder), device="cpu")(images, PROMPTS)
    expected = model.logit_scale.exp().detach() * cosine / 26
    torch.testing.assert_close(pick, expected, atol=tolerance, rtol=0)


def test_in_any_batch_the_same_and_without_gradients(clip_folder, noise):
    images = noise(4).requires_grad_()
    together = ClipCosine(model=str(clip_folder), device="cpu")(images, PROMPTS)
    assert not together.requires_grad
    clip_tower.cache_clear()  # it would remember
    reward = ClipCosine(model=str(clip_folder), device="cpu")
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in reward.tower.model.parameters())


def test_one_model_for_two_rewards_sees_an_image_and_a_prompt_once(clip_folder, noise, monkeypatch):
    folder = str(clip_folder)
    clip, pick = ClipCosine(model=folder), PickScore(model=folder, processor=folder)
    assert clip.tower is pick.tower
    seen = {"get_image_features": 0, "get_text_features": 0}
    for name in seen:
        original = getattr(clip.tower.model, name)

        def counted(*args, _name=name, _original=original, **kwargs):
            seen[_name] += len(next(iter(kwargs.values())))
            return _original(*args, **kwargs)

        monkeypatch.setattr(clip.tower.model, name, counted)
    images = noise(4)
    images[2] = images[0]
    for reward in (clip, pick, clip):
        reward(images, PROMPTS)
    assert seen == {"get_image_features": 3, "get_text_features": 3}


def stack_weights(width, seed=1):
    generator = torch.Generator().manual_seed(seed)
    widths, weights = (width, 1024, 128, 64, 16, 1), {}
    for number, (inner, outer) in zip((0, 2, 4, 6, 7), zip(widths, widths[1:], strict=False), strict=True):
        weights[f"layers.{number}.weight"] = torch.randn(outer, inner, generator=generator) / inner**0.5
        weights[f"layers.{number}.bias"] = torch.randn(outer, generator=generator)
    return weights


def test_the_aesthetic_predictor(clip_folder, model, noise, tmp_path):
    """Five linear layers without activations are one: their product, and the biases carried through."""
    weights, file = stack_weights(24), tmp_path / "head.pth"
    torch.save(weights, file)
    images = noise(3)
    vector, _ = by_hand(model, clip_folder, images, PROMPTS[:3])
    for number in (0, 2, 4, 6, 7):
        vector = vector @ weights[f"layers.{number}.weight"].T + weights[f"layers.{number}.bias"]
    scores = Aesthetic(weights=str(file), model=str(clip_folder), device="cpu")(images, ["", "a", "b"])
    assert not scores.requires_grad
    torch.testing.assert_close(scores, vector[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            stack_weights(25),
            r"an aesthetic predictor for .*: 0.weight has the shape \(1024, 25\) instead of \(1024, 24\);",
        ),
        ([1, 2], "should hold a table of tensors, but holds a list"),
        (b"no weights", "cannot be read as weights"),
        (
            None,
            "There is no weight file .*head.pth; download aesthetic-model.pth from https://huggingface.co/",
        ),
    ],
)
def test_wrong_heads_are_refused(clip_folder, tmp_path, content, sentence):
    file = tmp_path / "head.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(RewardError, match=sentence):
        make("aesthetic", {"weights": str(file), "model": str(clip_folder)})


def test_code_in_a_weight_file_is_not_run(clip_folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"layers.0.weight": Trap()}, tmp_path / "head.pth")
    with pytest.raises(RewardError, match="cannot be read as weights"):
        Aesthetic(weights=str(tmp_path / "head.pth"), model=str(clip_folder))
    assert not (tmp_path / "sprung").exists()


def test_models_that_are_not_there_or_not_whole(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(
        RewardError, match="There is no folder /no/such/folder; give a model's folder or its name"
    ):
        make("clip", {"model": "/no/such/folder"})
    with pytest.raises(RewardError, match="could not be loaded .OSError"):
        make("clip", {"model": str(tmp_path)})
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match="lacks 1 of CLIP's tensors, such as visual_projection.weight"):
        make("clip", {"model": str(tmp_path)})


def test_settings_are_checked(clip_folder):
    with pytest.raises(ValueError, match="divisor > 0"):
        PickScore(model=str(clip_folder), processor=str(clip_folder), divisor=0)


@pytest.mark.parametrize("use", ["clip", "pickscore"])
def test_scores_are_not_kept_for_other_weights_in_the_same_folder(clip_folder, tmp_path, use):
    from safetensors.torch import load_file, save_file

    shutil.copytree(clip_folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"

    def identity(shift):
        clip_tower.cache_clear()
        weights = load_file(clip_folder / "model.safetensors")
        weights["logit_scale"] = weights["logit_scale"] + shift
        save_file(weights, file, metadata={"format": "pt"})
        where = {"model": str(tmp_path / "model"), "processor": str(clip_folder), "device": "cpu"}
        return RewardSet.from_specs({"r": {"use": use, "args": where}}).identity("r")

    assert identity(0) == identity(0) != identity(1)
