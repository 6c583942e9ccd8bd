"""Rewards from CLIP models: agreement of image and text, and PickScore, CLIP trained on human choices.

Any CLIP folder or hub name of transformers will do. A prompt is embedded once, and an image once for all rewards of one
process that name the same weights, for they share the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.embeddings import Remembered, chosen_device, picture_keys
from imgrl.rewards.fingerprint import fingerprint
from imgrl.rewards.hub import check_source, not_loaded

__all__ = ["ClipCosine", "ClipTower", "PickScore", "clip_tower"]


class ClipTower:
    """Image and text embeddings of one CLIP model, of length 1, float32."""

    def __init__(self, model: Any, processor: Any, *, device: str, batch: int = 32) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.processor, self.device, self.batch = processor, device, batch
        self.length = int(model.config.text_config.max_position_embeddings)
        self._texts, self._images = Remembered(4096), Remembered(1024)

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """Embeddings [n, d] of images [n, 3, H, W] in [0, 1], by the processor's own preprocessing."""
        levels, keys = picture_keys(images)

        def embed(rows: list[int]) -> Tensor:
            given = self.processor(images=[levels[row] for row in rows], return_tensors="pt")
            found = self.model.get_image_features(pixel_values=given["pixel_values"].to(self.device))
            return F.normalize(_vector(found).float(), dim=-1)

        return self._images(keys, embed, batch=self.batch)

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [n, d] of prompts, cut at the model's length."""

        def embed(rows: list[int]) -> Tensor:
            texts = [prompts[row] for row in rows]
            options = {"padding": True, "truncation": True, "max_length": self.length}
            given = self.processor(text=texts, return_tensors="pt", **options).to(self.device)
            return F.normalize(_vector(self.model.get_text_features(**given)).float(), dim=-1)

        return self._texts(prompts, embed, batch=self.batch)

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [n] of each image [n, 3, H, W] in [0, 1] with its prompt."""
        return (self.images(images) * self.texts(prompts)).sum(-1)

    @property
    def scale(self) -> float:
        """What the model multiplies cosines by."""
        return float(self.model.logit_scale.detach().float().exp())


def _vector(output: Any) -> Tensor:
    """The projected embedding: transformers before 5 returns it, later versions wrap it."""
    return output if isinstance(output, Tensor) else output.pooler_output


@cache
def clip_tower(model: str, processor: str, device: str) -> ClipTower:
    """Load a CLIP model of transformers and its processor, once.

    Raises:
        RewardError: if either is not on this machine and cannot be downloaded, or the weights are not all there.
    """
    from transformers import CLIPModel, CLIPProcessor

    kind: Any = CLIPModel  # its annotations leave out what the loading information changes
    where = f"The CLIP model {check_source(model)!r} (processor {check_source(processor)!r})"
    try:
        weights, told = kind.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
        prepare = CLIPProcessor.from_pretrained(processor)
    except Exception as error:  # the libraries below it raise their own kinds
        raise not_loaded(where, error, argument="model", wanted="a hub name of a CLIP model") from error
    if lacking := sorted({*told["missing_keys"], *(str(key) for key in told["mismatched_keys"])}):
        raise RewardError(
            f"{where} lacks {len(lacking)} of CLIP's tensors, such as {lacking[0]}; copy it again."
        )
    return ClipTower(weights, prepare, device=device)


class ClipCosine:
    """Cosine of image and prompt, about 0.15 to 0.35 for real weights (not the 2.5 max(cos, 0) of "CLIPScore").

    Args:
        model: a folder or hub name of a CLIP model of transformers.
        processor: where its preprocessing is; None is with the model.
        device: where it computes; None is the first GPU, if there is one.

    Raises:
        RewardError: if the model cannot be loaded.
    """

    def __init__(
        self,
        *,
        model: str = "openai/clip-vit-large-patch14",
        processor: str | None = None,
        device: str | None = None,
    ) -> None:
        self.tower = clip_tower(model, processor or model, chosen_device(device))

    @property
    def identity(self) -> str:
        """Digest of the weights, whatever file they came from."""
        return fingerprint(self.tower.model)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [n] of each image [n, 3, H, W] in [0, 1] with its prompt."""
        return self.tower.cosine(images, prompts).cpu()


class PickScore:
    """``scale * cosine / 26`` of CLIP-H fine-tuned on human choices (Kirstain et al. 2023), about 0.7 to 0.92.

    Args:
        model: a folder or hub name; 3.9 GB in float32.
        processor: where its preprocessing is.
        divisor: 26 as in Flow-GRPO's code; 1 gives the paper's scale.
        device: where it computes; None is the first GPU, if there is one.

    Raises:
        RewardError: if the model cannot be loaded.
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
        self.tower, self.divisor = clip_tower(model, processor, chosen_device(device)), divisor

    @property
    def identity(self) -> str:
        """Digest of the weights, whatever file they came from."""
        return fingerprint(self.tower.model)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n] of images [n, 3, H, W] in [0, 1] for their prompts."""
        return (self.tower.scale * self.tower.cosine(images, prompts) / self.divisor).cpu()
