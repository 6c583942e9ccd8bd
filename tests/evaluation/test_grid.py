"""Sheets of images, pixel by pixel."""

import numpy as np
import torch
from PIL import Image

from imgrl.evaluation.grid import save_grid


def test_a_grid_has_the_pixels_of_its_images(tmp_path):
    images = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    save_grid(images, tmp_path / "new" / "grid.png", columns=2, gap=1)
    sheet = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    assert sheet.shape == (4 + 1 + 4, 5 + 1 + 5, 3)
    expected = (images[2] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(sheet[5:9, 0:5], expected)
    assert (sheet[5:9, 6:] == 255).all()  # the place of the missing fourth
