"""Similarity to reference images in the features of a self-supervised network (DINO, as used by Adv-GRPO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from imgrl.errors import ImgrlError, RewardError
from imgrl.rewards.features import Features, load_extractor, rows_of
from imgrl.rewards.fingerprint import digest
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
    """In [-1, 1] where the weights add up to 1, about 0.2 to 0.9 for trained networks, 0.99 for untrained ones.

    A prompt that has references of its own is compared with those alone. References are cut to a square, images
    stretched to one; Adv-GRPO's are square.

    Args:
        references: a folder of pictures or a JSON-lines file; see :func:`imgrl.rewards.references.load_references`.
        backbone: frozen network; see :func:`imgrl.rewards.features.load_extractor`. ``efficientnet-lite0`` needs no
            download.
        side: pixels to which images are resized for it; None takes the network's own, 518 for DINOv2.
        overall: weight of the global vectors; 1 with ``patches=0`` is Adv-GRPO's similarity reward.
        patches: weight of the patches.
        reduce: ``max`` takes the closest reference, ``mean`` all of them.
        device: where it computes; None is the first GPU, if there is one.
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
        device: str | None = None,
    ) -> None:
        if reduce not in get_args(Reduce):
            raise ValueError(f"reduce must be one of {', '.join(get_args(Reduce))}, got {reduce!r}.")
        if overall < 0 or patches < 0 or overall + patches == 0:
            raise ValueError(f"Expected weights >= 0, one of them above, got {overall} and {patches}.")
        self.overall, self.patches, self.reduce = overall, patches, reduce
        try:
            self.extractor = load_extractor(backbone, side=side, device=device)
            size = self.extractor.side
            self.references = load_references(references, height=size, width=size)
        except ImgrlError as error:
            raise RewardError(str(error)) from error
        self.seen = self.extractor(self.references.images.float() / 255)

    @property
    def identity(self) -> str:
        """Digest of the network and of the references, whatever their files are called."""
        return digest(
            {"references": self.references.images},
            self.extractor.identity,
            sorted(self.references.of_prompt.items()),
        )

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> list[float | None]:
        """Similarity of images [n, 3, H, W] in [0, 1]; None for a prompt without references where others have some."""
        own = self.references.of_prompt
        scores: list[float | None] = [None] * len(prompts)
        here = [i for i, prompt in enumerate(prompts) if not own or own.get(prompt)]
        if not here:
            return scores
        features = self.extractor(images[here])
        for place, i in enumerate(here):
            among = rows_of(self.seen, torch.tensor(own[prompts[i]])) if own else self.seen
            one = rows_of(features, torch.tensor([place]))
            found = similarity(one, among, overall=self.overall, patches=self.patches)[0]
            scores[i] = float(found.amax() if self.reduce == "max" else found.mean())
        return scores
