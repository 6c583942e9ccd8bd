"""Image towers as backbones: small models of the real classes, saved and loaded by the real loaders.

Expected features come from the libraries' own outputs for images of the tower's size, or from its parts by hand.
"""

import json

import pytest
import torch

timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")
from imgrl.errors import ModelError  # noqa: E402
from imgrl.rewards.features import load_extractor  # noqa: E402
from imgrl.rewards.pixels import to_uint8  # noqa: E402

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's statistics
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # SigLIP's
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


def normalised(images, statistics):
    mean, std = (torch.tensor(row)[:, None, None] for row in statistics)
    return (torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2) / 255 - mean) / std


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(0)
    text = {**WIDTH, "vocab_size": 64, "max_position_embeddings": 8}
    config = SiglipConfig(text_config=text, vision_config={**WIDTH, "image_size": 32, "patch_size": 8})
    folder = tmp_path_factory.mktemp("siglip")
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory):
    """A folder as open_clip writes it for the hub."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    model = open_clip.CLIP(**config)
    folder = tmp_path_factory.mktemp("open_clip")
    preprocess = {"mean": list(CLIP[0]), "std": list(CLIP[1])}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def test_a_clip_tower_gives_its_class_token_and_patches(clip_folder, noise):
    from transformers import CLIPModel

    images = noise(3).requires_grad_()
    extractor = load_extractor(f"transformers:{clip_folder}", device="cpu", batch=2)
    features = extractor(images)
    tower = CLIPModel.from_pretrained(clip_folder).eval().vision_model
    with torch.no_grad():
        found = tower(normalised(images, CLIP))
        patches = tower.post_layernorm(found.last_hidden_state[:, 1:])
    torch.testing.assert_close(features.overall, found.pooler_output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.patches, patches, atol=1e-5, rtol=1e-5)
    assert features.patches.shape == (3, 16, 32) and (extractor.side, extractor.width) == (32, 32)
    assert not features.overall.requires_grad


def test_the_pickscore_tower_is_its_clip_with_the_processor_of_another(clip_folder, noise, monkeypatch):
    monkeypatch.setattr("imgrl.rewards.towers._PICKSCORE", (str(clip_folder), str(clip_folder)))
    images = noise(2)
    named, plain = load_extractor("pickscore"), load_extractor(f"transformers:{clip_folder}")
    assert torch.equal(named(images).patches, plain(images).patches)


def test_a_siglip_tower_has_no_class_token(siglip_folder, noise):
    from transformers import SiglipModel

    images = noise(3)
    features = load_extractor(f"transformers:{siglip_folder}", device="cpu")(images)
    tower = SiglipModel.from_pretrained(siglip_folder).eval().vision_model
    with torch.no_grad():
        found = tower(normalised(images, HALF))
    torch.testing.assert_close(features.overall, found.pooler_output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.patches, found.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_an_open_clip_tower_gives_its_class_token_and_patches(open_clip_folder, noise):
    images = noise(3)
    features = load_extractor(f"open_clip:{open_clip_folder}", device="cpu")(images)
    visual = open_clip.create_model(f"local-dir:{open_clip_folder}").eval().visual
    with torch.no_grad():
        projected = visual(normalised(images, CLIP))
    # open_clip's own embedding is the class token through its projection
    torch.testing.assert_close(features.overall @ visual.proj, projected, atol=1e-5, rtol=1e-5)
    assert features.patches.shape == (3, 16, 64)


@pytest.mark.parametrize("kind", ["clip_folder", "siglip_folder"])
def test_the_last_layers_lie_side_by_side(kind, request, noise):
    images, name = noise(2), f"transformers:{request.getfixturevalue(kind)}"
    one, two = (load_extractor(name, layers=layers, device="cpu")(images) for layers in (1, 2))
    assert two.overall.shape == (2, 64) and two.patches.shape == (2, 16, 64)
    assert torch.equal(two.patches[..., 32:], one.patches) and torch.equal(two.overall[:, 32:], one.overall)
    assert not torch.allclose(two.patches[..., :32], one.patches, atol=0.1)


def test_the_last_layers_of_open_clip_lie_side_by_side(open_clip_folder, noise):
    one, two = (load_extractor(f"open_clip:{open_clip_folder}", layers=n)(noise(2)) for n in (1, 2))
    assert two.patches.shape == (2, 16, 128) and torch.equal(two.patches[..., 64:], one.patches)


@pytest.mark.parametrize("kind", ["transformers:clip_folder", "transformers:siglip_folder", "open_clip"])
def test_another_side_means_more_patches(kind, request, noise):
    library, _, fixture = kind.partition(":")
    folder = request.getfixturevalue(fixture or "open_clip_folder")
    extractor = load_extractor(f"{library}:{folder}", side=64)
    features = extractor(noise(2, 48, 48))
    assert extractor.side == 64 and features.patches.shape[1] == 64
    torch.testing.assert_close(
        extractor(noise(2, 48, 48)[1:]).patches, features.patches[1:], atol=1e-4, rtol=0
    )


def test_what_cannot_be_loaded_is_refused_in_a_sentence(clip_folder, open_clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for name in (f"transformers:{tmp_path}", f"open_clip:{tmp_path}"):
        with pytest.raises(ModelError, match="could not be loaded"):
            load_extractor(name)
    for name, layers in ((f"transformers:{clip_folder}", 3), (f"open_clip:{open_clip_folder}", 4)):
        with pytest.raises(ModelError, match=f"has {layers - 1} layers, so 1 to {layers - 1}"):
            load_extractor(name, layers=layers)
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match="lacks 1 tensors of its image tower, such as .*post_layernorm.weight"
    ):
        load_extractor(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="of the kind 'bert', but a tower must be clip or siglip"):
        load_extractor(f"transformers:{tmp_path}")
