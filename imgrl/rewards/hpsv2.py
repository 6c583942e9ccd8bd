"""Human Preference Score v2.1 (Wu et al. 2023): cosine of a CLIP ViT-H/14 fine-tuned on human choices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.clip import chosen_device
from imgrl.rewards.pixels import to_uint8

__all__ = ["HPSv2"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class HPSv2:
    """About 0.20 to 0.35; no logit scale.

    Args:
        weights: ``HPS_v2.1_compressed.pt`` (hub ``xswu/HPSv2``), 1.9 GB.
        architecture: of the weights, as open_clip names it.
        device: where it computes; None is the first GPU, if there is one.
        batch: images it sees at once.

    Raises:
        RewardError: if open_clip or the weights are missing, or do not fit.
    """

    def __init__(
        self, *, weights: str, architecture: str = "ViT-H-14", device: str | None = None, batch: int = 32
    ) -> None:
        self.device, self.batch = chosen_device(device), batch
        self.model, self.tokenizer = _open(weights, architecture, self.device)
        self.side = int(self.model.visual.image_size[0])
        self._texts: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n] of images [n, 3, H, W] in [0, 1] for their prompts."""
        seen = [
            F.normalize(self.model.encode_image(self._pixels(part)).float(), dim=-1)
            for part in images.split(self.batch)
        ]
        return (torch.cat(seen) * self._embedded(prompts)).sum(-1).cpu()

    def _pixels(self, images: Tensor) -> Tensor:
        """Longest side to the model's, bicubic; padded with black before normalisation, as the reference does."""
        side, pictures = self.side, []
        for pixels in to_uint8(images):
            picture = Image.fromarray(pixels)
            scale = side / max(picture.size)
            size = (round(picture.width * scale), round(picture.height * scale))
            canvas = Image.new("RGB", (side, side))
            canvas.paste(
                picture.resize(size, Image.Resampling.BICUBIC), ((side - size[0]) // 2, (side - size[1]) // 2)
            )
            pictures.append(np.asarray(canvas))
        levels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        return ((levels - mean) / std).to(self.device)

    def _embedded(self, prompts: Sequence[str]) -> Tensor:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        for start in range(0, len(new), self.batch):
            part = new[start : start + self.batch]
            vectors = self.model.encode_text(self.tokenizer(part).to(self.device))
            self._texts |= dict(zip(part, F.normalize(vectors.float(), dim=-1), strict=True))
        return torch.stack([self._texts[prompt] for prompt in prompts])


@cache
def _open(weights: str, architecture: str, device: str) -> tuple[Any, Any]:
    import open_clip

    file = Path(weights)
    if not file.is_file():
        raise RewardError(
            f"The HPSv2 weights {file} do not exist; download HPS_v2.1_compressed.pt and give its path as args.weights."
        )
    model = open_clip.create_model(architecture, pretrained=None, precision="fp32")
    try:
        given = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(given["state_dict"])
    except Exception as error:
        raise RewardError(f"{file} does not hold HPSv2 weights of {architecture}: {error}") from error
    return model.to(device).eval().requires_grad_(False), open_clip.get_tokenizer(architecture)
