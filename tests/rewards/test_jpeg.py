"""JPEG sizes against Pillow called by hand, and their order."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from imgrl.rewards.jpeg import Compressibility, Incompressibility
from imgrl.rewards.resolve import make


def test_sizes_and_their_order():
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    images = torch.stack([torch.full((3, 64, 64), 0.5), ramp, torch.rand(3, 64, 64, generator=generator)])
    file = io.BytesIO()
    pixels = np.round(images[2].numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=2)
    busy = Incompressibility()(images, ["", "", ""])
    assert busy[2] == len(file.getvalue()) / 1000
    assert 0.5 < busy[0] < busy[1] < busy[2]
    assert Compressibility()(images, ["", "", ""]) == [-kilobytes / 500 for kilobytes in busy]


def test_the_short_name_is_compressibility():
    assert type(make("jpeg")) is type(make("jpeg_compressibility")) is Compressibility


def test_settings_are_checked():
    with pytest.raises(ValueError, match="quality 1 to 95"):
        Incompressibility(quality=100)
