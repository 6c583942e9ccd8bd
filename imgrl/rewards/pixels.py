"""The one conversion from image tensors to bytes that every reward shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["CLIP_MEAN", "CLIP_STD", "normalised", "to_uint8"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn float [n, 3, H, W] in [0, 1] into uint8 [n, H, W, 3], rounding to the nearest level."""
    levels = images.detach().float().mul(255).round().clamp(0, 255)
    return levels.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def normalised(pictures: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 [n, H, W, 3] into float32 [n, 3, H, W] with the mean and spread that a network expects."""
    levels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    centre, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (levels - centre) / spread
