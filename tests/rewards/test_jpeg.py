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


def test_the_ends_of_the_range_at_64_pixels():
    """Measured with libjpeg-turbo 3.2, with a little room for another encoder.

    Other settings lie far outside: noise takes 3.1 kB at quality 75, and 10.5 kB with its colours whole.
    """
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    flat = torch.linspace(0, 1, 8).view(8, 1, 1, 1).expand(8, 3, 64, 64)
    assert Incompressibility()(flat, [""] * 8) == pytest.approx([0.69] * 8, abs=0.03)
    assert Incompressibility()(noise, [""] * 8) == pytest.approx([5.42] * 8, abs=0.15)
    assert Compressibility()(flat, [""] * 8) == pytest.approx([-0.0014] * 8, abs=1e-4)
    assert Compressibility()(noise, [""] * 8) == pytest.approx([-0.0108] * 8, abs=3e-4)


def test_the_short_name_is_compressibility():
    assert type(make("jpeg")) is type(make("jpeg_compressibility")) is Compressibility


def test_settings_are_checked():
    with pytest.raises(ValueError, match="quality 1 to 95"):
        Incompressibility(quality=100)
