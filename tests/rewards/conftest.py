"""Small models of the real classes with random weights, on disk as their originals are."""

import pytest
import torch
from tiny_models import flux


@pytest.fixture
def noise():
    """Random images [n, 3, height, width] in [0, 1]."""

    def make(count, height=32, width=32, seed=0):
        return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))

    return make


def build_clip(seed=0):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    text = flux.clip_config(flux.clip_tokenizer(), 32)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 24,
    }
    config = CLIPConfig(
        text_config={**text, "projection_dim": 24},
        vision_config=vision,
        projection_dim=24,
        initializer_factor=5.0,
    )
    return CLIPModel(config).eval()


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIP of two layers a tower, 32 pixels, with its processor."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    folder = tmp_path_factory.mktemp("clip")
    build_clip().save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=flux.clip_tokenizer()).save_pretrained(folder)
    return folder
