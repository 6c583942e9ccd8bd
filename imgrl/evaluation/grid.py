"""Sheets of images."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

__all__ = ["save_grid"]


def save_grid(images: Tensor, path: Path, *, columns: int, gap: int = 2) -> None:
    """Write images [n, 3, H, W] in [0, 1] as one PNG, row by row, with ``gap`` white pixels between.

    Raises:
        ValueError: if there is no image or no column.
    """
    if images.ndim != 4 or images.shape[0] < 1 or images.shape[1] != 3 or columns < 1:
        raise ValueError(
            f"A grid needs images [n >= 1, 3, H, W] and at least one column, got {list(images.shape)} "
            f"and {columns}."
        )
    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for index, image in enumerate(images.detach().float().cpu()):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    pixels = (sheet * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
