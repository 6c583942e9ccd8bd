"""Similarity to reference images in the features of a self-supervised network (DINO, as used by Adv-GRPO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from imgrl.rewards.features import Features, load_extractor
from imgrl.rewards.references import load_references

__all__ = ["Dino", "similarity"]

Reduce = Literal["max", "mean"]


def similarity(images: Features, references: Features, *, overall: float, patches: float) -> Tensor:
    """Weighted cosine [n, m] of n images with m references.

    ``overall`` weighs the cosine of the two global vectors, ``patches`` the mean over an image's patches of the best
    cosine with a patch of the reference.
    """
    both = overall * F.normalize(images.overall, dim=-1) @ F.normalize(references.overall, dim=-1).T
    if not patches:
        return both
    mine, theirs = F.normalize(images.patches, dim=-1), F.normalize(references.patches, dim=-1)
    best = torch.stack(
        [torch.einsum("npd,qd->npq", mine, other).amax(-1).mean(-1) for other in theirs], dim=1
    )
    return both + patches * best


class Dino:
    """In [-1, 1] where the weights add up to 1, about 0.2 to 0.9 for trained networks.

    A prompt that has references of its own is compared with those alone.

    Args:
        references: a folder of pictures or a JSON-lines file; see ``imgrl.rewards.references.load_references``.
        backbone: frozen network; see ``imgrl.rewards.features.load_extractor``.
        side: pixels to which images are resized for it.
        overall: weight of the global vectors.
        patches: weight of the patches.
        reduce: ``max`` takes the closest reference, ``mean`` all of them.
    """

    def __init__(
        self,
        *,
        references: str,
        backbone: str = "vit_base_patch14_dinov2.lvd142m",
        side: int | None = None,
        overall: float = 0.7,
        patches: float = 0.3,
        reduce: Reduce = "max",
    ) -> None:
        if reduce not in get_args(Reduce):
            raise ValueError(f"reduce must be one of {', '.join(get_args(Reduce))}, got {reduce!r}.")
        if overall < 0 or patches < 0 or overall + patches == 0:
            raise ValueError(f"Expected weights >= 0, one of them above, got {overall} and {patches}.")
        self.overall, self.patches, self.reduce = overall, patches, reduce
        self.extractor = load_extractor(backbone, side=side)
        size = self.extractor.side
        self.references = load_references(references, height=size, width=size)
        self.seen = self.extractor(self.references.images.float() / 255)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> list[float | None]:
        """Similarity of images [n, 3, H, W] in [0, 1]; None for a prompt without references where others have some."""
        scores: list[float | None] = [None] * len(prompts)
        own = self.references.of_prompt
        everything = tuple(range(len(self.references.images)))
        for prompt in dict.fromkeys(prompts):
            rows = list(own.get(prompt, ())) if own else list(everything)
            if not rows:
                continue
            here = [i for i, other in enumerate(prompts) if other == prompt]
            among = Features(*(part[rows] for part in self.seen))
            found = similarity(
                self.extractor(images[here]), among, overall=self.overall, patches=self.patches
            )
            best = found.amax(1) if self.reduce == "max" else found.mean(1)
            for i, value in zip(here, best.tolist(), strict=True):
                scores[i] = value
        return scores
