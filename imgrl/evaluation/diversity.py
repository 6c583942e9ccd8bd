"""How different the images of one prompt are: falls towards 0 when a policy collapses onto one picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["diversity", "group_distances"]


def diversity(images: Tensor, group: Tensor) -> float:
    """Mean over prompts of the mean root-mean-square distance between two of a prompt's images.

    Args:
        images: [n, ...] in [0, 1].
        group: int64 [n]; images with the same number belong to one prompt, in any order.

    Returns:
        A distance in [0, 1] pixel units; NaN if no prompt has two images.

    Raises:
        ValueError: if ``group`` has not one number an image.
    """
    if group.shape != images.shape[:1]:
        raise ValueError(
            f"diversity needs one group number an image: {len(images)} images, group {list(group.shape)}."
        )
    distances = group_distances(images, group)
    return sum(distances) / len(distances) if distances else math.nan


def group_distances(images: Tensor, group: Tensor) -> list[float]:
    """The distance of :func:`diversity` for each prompt that has two images or more."""
    found = []
    for number in group.unique():
        mine = (
            images[group == number].detach().flatten(1).cpu().double()
        )  # a prompt at a time: double is large
        if len(mine) > 1:
            found.append(float(torch.pdist(mine).mean()) / math.sqrt(mine.shape[1]))
    return found
