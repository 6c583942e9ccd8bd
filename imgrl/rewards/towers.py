"""Image towers of two-tower models as frozen features: CLIP and SigLIP of transformers or open_clip, and PickScore's.

``transformers:NAME`` takes a hub name or folder; ``open_clip:ARCHITECTURE/WEIGHTS`` what open_clip lists as pretrained,
``open_clip:hf-hub:OWNER/NAME`` or ``open_clip:FOLDER`` what its ``push_to_hf_hub`` wrote. ``pickscore`` is PickScore's
tower. Each takes the one way of :func:`imgrl.rewards.features.prepared`, with the statistics of its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgrl.errors import ModelError
from imgrl.rewards.features import Extractor, Features, Frozen, VitFeatures, side_by_side
from imgrl.rewards.hub import in_brief

__all__ = ["OpenClipFeatures", "TowerFeatures", "load_tower"]

_PICKSCORE = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Its weights, and where its preprocessing is."""


class TowerFeatures(Frozen):
    """The last layers of a CLIP or SigLIP image tower of transformers, each by the tower's last norm.

    SigLIP has no class token: its attention pool stands for the image.
    """

    def __init__(self, name: str, network: Any, *, side: int, **options: Any) -> None:
        self.stretched = side != int(network.config.image_size)
        super().__init__(name, network, side=side, depth=int(network.config.num_hidden_layers), **options)

    def _see(self, pixels: Tensor) -> Features:
        found = self.network(
            pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=self.stretched
        )
        tower = getattr(self.network, "vision_model", self.network)  # transformers 5 has no inner one
        normed = [tower.post_layernorm(state) for state in found.hidden_states[-self.layers :]]
        if hasattr(tower, "head"):
            return side_by_side((tower.head(tokens), tokens) for tokens in normed)
        return side_by_side((tokens[:, 0], tokens[:, 1:]) for tokens in normed)


class OpenClipFeatures(Frozen):
    """The last layers of open_clip's own vision transformer, each by its last norm."""

    def __init__(self, name: str, network: Any, **options: Any) -> None:
        super().__init__(name, network, depth=len(network.transformer.resblocks), **options)

    def _see(self, pixels: Tensor) -> Features:
        found = self.network.forward_intermediates(
            pixels,
            indices=self.layers,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        pairs = zip(found["image_intermediates_prefix"], found["image_intermediates"], strict=True)
        return side_by_side((prefix[:, 0], patches) for prefix, patches in pairs)


def load_tower(name: str, *, side: int | None, layers: int, batch: int, device: str) -> Extractor:
    """Load an image tower by name, as :func:`imgrl.rewards.features.load_extractor` does.

    Raises:
        ModelError: if it cannot be loaded whole, or is no vision transformer.
    """
    if name.startswith("open_clip:"):
        return _open_clip(name, side=side, layers=layers, batch=batch, device=device)
    source = name.removeprefix("transformers:")
    weights, statistics = _PICKSCORE if name == "pickscore" else (source, source)
    network, (mean, std) = _transformers(weights), _statistics(statistics)
    return TowerFeatures(
        name,
        network.to(device),
        layers=layers,
        side=side or int(network.config.image_size),
        batch=batch,
        mean=mean,
        std=std,
    )


def _transformers(source: str) -> Any:
    """The image tower alone; the text tower of the same file is not loaded."""
    from transformers import AutoConfig, CLIPVisionModel, SiglipVisionModel

    kinds: dict[str, Any] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
    try:
        kind = AutoConfig.from_pretrained(source).model_type.removesuffix("_vision_model")
        if kind not in kinds:
            raise ModelError(f"{source} is a model of the kind {kind!r}, but a tower must be clip or siglip.")
        network, told = kinds[kind].from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except ModelError:
        raise
    except Exception as error:  # the libraries below it raise their own kinds
        raise _not_loaded(f"transformers:{source}", error) from error
    if lacking := sorted({*told["missing_keys"], *(str(key) for key in told["mismatched_keys"])}):
        raise ModelError(
            f"{source} lacks {len(lacking)} tensors of its image tower, such as {lacking[0]}; copy it again."
        )
    return network


def _statistics(source: str) -> tuple[Any, Any]:
    """Mean and standard deviation of the pixels that a model was trained on."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        given, _ = ImageProcessingMixin.get_image_processor_dict(source)
        return given["image_mean"], given["image_std"]
    except Exception as error:
        raise _not_loaded(f"The preprocessing of {source}", error) from error


def _open_clip(name: str, *, side: int | None, layers: int, batch: int, device: str) -> Extractor:
    import open_clip

    source = name.removeprefix("open_clip:")
    if Path(source).is_dir():
        architecture, weights = f"local-dir:{source}", None
    elif source.startswith("hf-hub:"):
        architecture, weights = source, None
    else:
        architecture, _, weights = source.partition("/")
    try:
        model: Any = open_clip.create_model(
            architecture, pretrained=weights, precision="fp32", force_image_size=side, require_pretrained=True
        )
    except Exception as error:
        raise _not_loaded(name, error) from error
    visual = model.visual.to(device)
    size = visual.image_size
    settings = visual.preprocess_cfg
    options = {"mean": settings["mean"], "std": settings["std"], "batch": batch, "layers": layers}
    options["side"] = int(size if isinstance(size, int) else size[0])
    trunk = getattr(visual, "trunk", visual)  # SigLIP's tower is timm's
    if hasattr(trunk, "num_prefix_tokens"):
        return VitFeatures(name, trunk, **options)
    if not hasattr(getattr(visual, "transformer", None), "resblocks"):
        raise ModelError(
            f"{name} is no vision transformer: it has no patches to look at; choose a ViT of open_clip's."
        )
    return OpenClipFeatures(name, visual, **options)


def _not_loaded(what: str, error: Exception) -> ModelError:
    return ModelError(
        f"{what} could not be loaded ({in_brief(error)}); give a hub name or a folder that is on this machine or "
        "can be downloaded."
    )
