"""Rewards from CLIP models: agreement of image and text, and PickScore, CLIP trained on human choices.

Any CLIP folder or hub name of transformers will do. Text is embedded once a prompt; models are shared by the rewards of
one process that name the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.pixels import to_uint8

__all__ = ["ClipCosine", "ClipTower", "PickScore", "open_clip_tower"]


class ClipTower:
    """Image and text embeddings of one CLIP model, of length 1, float32."""

    def __init__(self, model: Any, processor: Any, *, device: str, batch: int = 32) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.processor, self.device, self.batch = processor, device, batch
        self._texts: dict[str, Tensor] = {}

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """Embeddings [n, d] of images [n, 3, H, W] in [0, 1], by the processor's own preprocessing."""
        parts = []
        for part in images.split(self.batch):
            given = self.processor(images=list(to_uint8(part)), return_tensors="pt")["pixel_values"]
            parts.append(_vector(self.model.get_image_features(pixel_values=given.to(self.device))))
        return F.normalize(torch.cat(parts).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [n, d] of prompts, cut at the model's length."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        for start in range(0, len(new), self.batch):
            part = new[start : start + self.batch]
            given = self.processor(
                text=part, padding=True, truncation=True, max_length=77, return_tensors="pt"
            ).to(self.device)
            embedded = F.normalize(_vector(self.model.get_text_features(**given)).float(), dim=-1)
            self._texts |= dict(zip(part, embedded, strict=True))
        return torch.stack([self._texts[prompt] for prompt in prompts])

    @property
    def scale(self) -> float:
        """What the model multiplies cosines by."""
        return float(self.model.logit_scale.detach().float().exp())


def _vector(output: Any) -> Tensor:
    """The projected embedding: transformers before 5 returns it, later versions wrap it."""
    return output if isinstance(output, Tensor) else output.pooler_output


@cache
def open_clip_tower(model: str, processor: str, device: str) -> ClipTower:
    """Load a CLIP model of transformers and its processor, once.

    Raises:
        RewardError: if either is not on this machine and cannot be downloaded.
    """
    from transformers import CLIPModel, CLIPProcessor

    try:
        weights = CLIPModel.from_pretrained(model, dtype=torch.float32)
        return ClipTower(weights, CLIPProcessor.from_pretrained(processor), device=device)
    except (OSError, ValueError) as error:
        missing = "" if Path(model).is_dir() else "; if this machine has no network, give `model` a folder"
        raise RewardError(
            f"The CLIP model {model!r} (processor {processor!r}) could not be loaded: {error}{missing}."
        ) from error


def chosen_device(device: str | None) -> str:
    """The device asked for, or the first there is."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


class ClipCosine:
    """Cosine of image and prompt, about 0.15 to 0.35 for real weights (not the 2.5 max(cos, 0) of "CLIPScore").

    Args:
        model: a folder or hub name of a CLIP model of transformers.
        processor: where its preprocessing is; None is with the model.
        device: where it computes; None is the first GPU, if there is one.
    """

    def __init__(
        self,
        *,
        model: str = "openai/clip-vit-large-patch14",
        processor: str | None = None,
        device: str | None = None,
    ) -> None:
        self.tower = open_clip_tower(model, processor or model, chosen_device(device))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [n] of each image [n, 3, H, W] in [0, 1] with its prompt."""
        return (self.tower.images(images) * self.tower.texts(prompts)).sum(-1).cpu()


class PickScore:
    """``scale * cosine / 26`` of CLIP-H fine-tuned on human choices (Kirstain et al. 2023), about 0.7 to 0.92.

    Args:
        model: a folder or hub name; 3.9 GB in float32.
        processor: where its preprocessing is.
        divisor: 26 as in Flow-GRPO's code; 1 gives the paper's scale.
        device: where it computes; None is the first GPU, if there is one.
    """

    def __init__(
        self,
        *,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        divisor: float = 26.0,
        device: str | None = None,
    ) -> None:
        if not divisor > 0:
            raise ValueError(f"Expected divisor > 0, got {divisor}.")
        self.tower, self.divisor = open_clip_tower(model, processor, chosen_device(device)), divisor

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n] of images [n, 3, H, W] in [0, 1] for their prompts."""
        cosine = (self.tower.images(images) * self.tower.texts(prompts)).sum(-1)
        return (self.tower.scale * cosine / self.divisor).cpu()
