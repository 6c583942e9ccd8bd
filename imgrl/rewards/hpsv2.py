"""Human Preference Score v2.1 (Wu et al. 2023): cosine of a CLIP ViT-H/14 fine-tuned on human choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.embeddings import Remembered, chosen_device
from imgrl.rewards.fingerprint import fingerprint
from imgrl.rewards.hub import load_whole, read_weights, weight_file
from imgrl.rewards.pixels import CLIP_MEAN, CLIP_STD, normalised, to_uint8

__all__ = ["HPSv2", "padded"]


class HPSv2:
    """About 0.20 to 0.35; no logit scale.

    Args:
        weights: ``HPS_v2.1_compressed.pt``, about 2 GB; None takes it from the hub (``xswu/HPSv2``).
        architecture: of the weights, as open_clip names it.
        device: where it computes; None is the first GPU, if there is one.
        batch: images it sees at once.

    Raises:
        RewardError: if open_clip or the weights are missing, or do not fit.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        architecture: str = "ViT-H-14",
        device: str | None = None,
        batch: int = 32,
    ) -> None:
        if batch < 1:
            raise ValueError(f"Expected batch >= 1, got {batch}.")
        from imgrl.rewards.registry import require

        require("hpsv2")
        self.device, self.batch = chosen_device(device), batch
        file = weight_file(weights, repository="xswu/HPSv2", file="HPS_v2.1_compressed.pt")
        self.model, self.tokenizer = _open(file, architecture, self.device)
        size = self.model.visual.image_size
        self.side = int(size if isinstance(size, int) else size[0])
        self._texts = Remembered(4096)

    @property
    def identity(self) -> str:
        """Digest of the weights, whatever file they came from."""
        return fingerprint(self.model)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n] of images [n, 3, H, W] in [0, 1] for their prompts."""
        seen = []
        for part in images.split(self.batch):
            pixels = normalised(padded(to_uint8(part), self.side), CLIP_MEAN, CLIP_STD)
            seen.append(F.normalize(self.model.encode_image(pixels.to(self.device)).float(), dim=-1))
        return (torch.cat(seen) * self._embedded(prompts)).sum(-1).cpu()

    def _embedded(self, prompts: Sequence[str]) -> Tensor:
        def embed(rows: list[int]) -> Tensor:
            tokens = self.tokenizer([prompts[row] for row in rows]).to(self.device)
            return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

        return self._texts(prompts, embed, batch=self.batch)


def padded(pictures: np.ndarray, side: int) -> np.ndarray:
    """uint8 [n, side, side, 3]: longest side to ``side``, bicubic; the rest black, the picture in the middle."""
    found = []
    for pixels in pictures:
        picture = Image.fromarray(pixels)
        scale = side / max(picture.size)
        width, height = (max(1, round(length * scale)) for length in picture.size)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", (side, side))
        canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
        found.append(np.asarray(canvas))
    return np.stack(found)


@cache
def _open(file: Path, architecture: str, device: str) -> tuple[Any, Any]:
    """The model and its tokenizer, once for each file."""
    import open_clip

    if architecture not in open_clip.list_models():
        raise RewardError(f"open_clip has no architecture {architecture!r}; HPSv2's is ViT-H-14.")
    model: Any = open_clip.create_model(architecture, pretrained=None, precision="fp32")
    given = read_weights(file).get("state_dict")
    if not isinstance(given, Mapping):
        raise RewardError(f"{file} has no table `state_dict`, so it is not HPSv2's.")
    load_whole(model, given, file=file, what=f"HPSv2 weights of {architecture}")
    return model.to(device).eval().requires_grad_(False), open_clip.get_tokenizer(architecture)
