"""What tells one network, or one set of tensors, from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["digest", "fingerprint"]


def digest(tensors: Mapping[str, Tensor], *settings: Any) -> str:
    """SHA-256, in hexadecimal, of tensors (names, types, shapes, devices, bytes) and of settings by their ``repr``."""
    story = hashlib.sha256(repr(settings).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        story.update(repr((name, tensor.dtype, tuple(tensor.shape), tensor.device.type)).encode())
        story.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return story.hexdigest()


def fingerprint(network: Any, *settings: Any) -> str:
    """Digest of a network's tensors and settings; of the torch version too, for another one may round differently."""
    return digest(network.state_dict(), torch.__version__, type(network).__name__, *settings)
