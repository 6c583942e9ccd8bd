"""The one conversion from image tensors to bytes that every reward shares."""

from __future__ import annotations

import numpy as np
from torch import Tensor

__all__ = ["to_uint8"]


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn float [n, 3, H, W] in [0, 1] into uint8 [n, H, W, 3], rounding to the nearest level."""
    levels = images.detach().float().mul(255).round().clamp(0, 255)
    return levels.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
