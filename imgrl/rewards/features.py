"""Features that a learning reward looks at: one vector an image and one a patch, from a frozen vision network.

Every image, reference or generated, takes the same way: rounded to 8 bits (references are files), resized with one
antialiased kernel, normalised by the network's own statistics. A discriminator would otherwise learn the difference
between two resize kernels instead of that between two kinds of picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from imgrl.errors import ModelError
from imgrl.rewards.fingerprint import fingerprint
from imgrl.rewards.hub import in_brief

__all__ = [
    "DEFAULT_BACKBONE",
    "Extractor",
    "Features",
    "Frozen",
    "LiteFeatures",
    "VitFeatures",
    "load_extractor",
    "moved",
    "prepared",
    "rows_of",
]

DEFAULT_BACKBONE = "efficientnet-lite0"
"""What learning rewards read and styles are measured with, unless told otherwise; its weights come with a package."""


class Features(NamedTuple):
    """What a network sees in n images."""

    overall: Float[Tensor, "n d"]
    """One vector an image."""
    patches: Float[Tensor, "n p d"]
    """One vector a patch, without class or register tokens."""


def moved(features: Features, device: torch.device) -> Features:
    """The features on a device."""
    return Features(*(part.to(device) for part in features))


def rows_of(features: Features, rows: Tensor) -> Features:
    """The features of some images."""
    return Features(*(part[rows.to(part.device)] for part in features))


class Extractor(Protocol):
    """A frozen network."""

    name: str
    width: int
    """Length of a vector."""
    side: int
    """Pixels to which images are resized."""
    device: torch.device
    """Where it computes and its features lie."""

    @property
    def identity(self) -> str:
        """Changes whenever the features of an image may."""
        ...

    def __call__(self, images: Tensor) -> Features:
        """Features of float images [n, 3, H, W] in [0, 1], the same in any batch."""
        ...


def prepared(
    images: Shaped[Tensor, "n 3 h w"], side: int, mean: Tensor, std: Tensor
) -> Float[Tensor, "n 3 s s"]:
    """Images in [0, 1], or uint8 levels, in 8 bits, ``side`` x ``side`` pixels, normalised; stretched if not square."""
    levels = images.float() if images.dtype == torch.uint8 else images.float().mul(255).round().clamp(0, 255)
    exact = levels / 255
    if exact.shape[-2:] != (side, side):
        exact = F.interpolate(exact, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (exact - mean) / std


class Frozen(ABC):
    """Batches and gradients of a frozen network."""

    def __init__(
        self,
        name: str,
        network: Any,
        *,
        side: int,
        batch: int,
        mean: Any,
        std: Any,
        layers: int = 1,
        depth: int | None = None,
    ) -> None:
        """Take a network of ``depth`` layers, of which the last ``layers`` are read.

        Raises:
            ModelError: if it has fewer.
        """
        if depth is not None and not 1 <= layers <= depth:
            raise ModelError(f"{name} has {depth} layers, so 1 to {depth} of them can be read, not {layers}.")
        self.name, self.side, self.batch, self.layers = name, side, batch, layers
        self._identity: str | None = None
        self.network = network.eval().requires_grad_(False)
        self.device = next(network.parameters()).device
        self.mean = torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1)
        self.width = int(self(torch.zeros(1, 3, side, side)).overall.shape[1])

    @property
    def identity(self) -> str:
        """Digest of the network and of all that it is shown and asked."""
        if self._identity is None:  # reads every weight
            statistics = self.mean.flatten().tolist(), self.std.flatten().tolist()
            self._identity = fingerprint(
                self.network, type(self).__name__, self.side, self.layers, *statistics
            )
        return self._identity

    @torch.no_grad()  # not inference_mode: a head is trained on these
    def __call__(self, images: Tensor) -> Features:
        """Features of images [n, 3, H, W], float in [0, 1] or uint8."""
        mean, std = self.mean.to(self.device), self.std.to(self.device)
        parts = [
            self._see(prepared(part.to(self.device), self.side, mean, std))
            for part in images.split(self.batch)
        ]
        return Features(*(torch.cat(kind).float() for kind in zip(*parts, strict=True)))

    @abstractmethod
    def _see(self, pixels: Tensor) -> Features:
        """Features of normalised pixels [n, 3, side, side]."""


class VitFeatures(Frozen):
    """The last layers of a timm vision transformer (DINOv2, DINOv2-reg, DINOv3, SigLIP), side by side."""

    def __init__(self, name: str, network: Any, **options: Any) -> None:
        super().__init__(name, network, depth=len(network.blocks), **options)

    def _see(self, pixels: Tensor) -> Features:
        found = self.network.forward_intermediates(
            pixels,
            indices=self.layers,
            norm=True,  # every layer by the network's last norm, as its last one is
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=True,
        )
        if self.network.num_prefix_tokens:  # registers are not patches
            return side_by_side((prefix[:, 0], patches) for patches, prefix in found)
        patches = (layer[0] if isinstance(layer, tuple) else layer for layer in found)
        return side_by_side((self.network.forward_head(layer, pre_logits=True), layer) for layer in patches)


class LiteFeatures(Frozen):
    """Stages two to four of EfficientNet-Lite0 on the grid of the fourth: edges, textures and parts; small and real.

    The overall vector is the mean of the patches.
    """

    def _see(self, pixels: Tensor) -> Features:
        stages = self.network.forward_intermediates(pixels, indices=[1, 2, 3], intermediates_only=True)
        grid = stages[-1].shape[-2:]
        patches = (
            torch.cat([F.adaptive_avg_pool2d(stage, grid) for stage in stages], 1).flatten(2).transpose(1, 2)
        )
        return Features(patches.mean(1), patches)


def side_by_side(layers: Iterable[tuple[Tensor, Tensor]]) -> Features:
    """Features of several layers, each (overall [n, d], patches [n, p, d]), as one of width ``layers * d``."""
    return Features(*(torch.cat(parts, dim=-1) for parts in zip(*layers, strict=True)))


def load_extractor(
    name: str = DEFAULT_BACKBONE,
    *,
    side: int | None = None,
    layers: int = 1,
    batch: int = 32,
    device: str | None = None,
) -> Extractor:
    """Load a frozen network by name.

    Args:
        name: ``efficientnet-lite0`` (weights that come with a package), the name of a timm model such as
            ``vit_base_patch14_dinov2.lvd142m``, a folder that timm saved, ``pickscore``, or what
            :mod:`imgrl.rewards.towers` loads: ``transformers:NAME``, ``open_clip:NAME``.
        side: pixels to which images are resized; None takes the network's own, and 128 for EfficientNet.
        layers: how many of its last layers, side by side; EfficientNet has its own choice of stages.
        batch: images it sees at once.
        device: where it computes; None is the first GPU, if there is one.

    Raises:
        ModelError: if the weights are not there, the network has no patches or not so many layers.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == DEFAULT_BACKBONE:
        from imgrl.rewards.backbone import load_backbone

        if layers != 1:
            raise ModelError(f"{name} gives three stages as one layer, so layers must be 1, not {layers}.")
        network = load_backbone().network
        config = network.default_cfg
        return LiteFeatures(
            name, network.to(where), side=side or 128, batch=batch, mean=config["mean"], std=config["std"]
        )
    if name == "pickscore" or name.startswith(("transformers:", "open_clip:")):
        from imgrl.rewards.towers import load_tower

        return load_tower(name, side=side, layers=layers, batch=batch, device=where)
    network = _timm(name, side).to(where)
    config = network.pretrained_cfg
    if not hasattr(network, "num_prefix_tokens"):
        raise ModelError(
            f"{name} is no vision transformer: it has no patches to look at; choose a ViT of timm's."
        )
    own = side or int(config["input_size"][-1])
    options = {"side": own, "batch": batch, "mean": config["mean"], "std": config["std"]}
    return VitFeatures(name, network, layers=layers, **options)


def _timm(name: str, side: int | None) -> Any:
    import timm

    folder = Path(name)
    source = f"local-dir:{folder}" if folder.is_dir() else name
    options: dict[str, Any] = {"num_classes": 0} | ({"img_size": side} if side else {})
    create: Callable[..., Any] = timm.create_model
    try:
        return create(source, pretrained=True, **options)
    except Exception as error:
        raise ModelError(
            f"The vision network {name!r} could not be loaded ({in_brief(error)}); give the name of a timm "
            "model whose weights are on this machine or can be downloaded, or a folder that timm saved."
        ) from error
