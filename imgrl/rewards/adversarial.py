"""A reward that learns: how much an image looks like the references (Adv-GRPO, arXiv 2511.20256).

A small float32 head on frozen features is trained, round by round, to tell references from the policy's images, and its
logit is the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.discriminator import Head, balanced, preference_loss, side_loss
from imgrl.rewards.features import DEFAULT_BACKBONE, Features, load_extractor
from imgrl.rewards.rival import Loss, Rival
from imgrl.rewards.schedule import OFFICIAL, Schedule

__all__ = ["Adversarial", "Schedule"]


class Adversarial(Rival):
    """The logit of a discriminator between references and generated images; its scale means nothing.

    Args:
        references: a folder of pictures or a JSON-lines file; see :func:`imgrl.rewards.references.load_references`.
        backbone: frozen network; see :func:`imgrl.rewards.features.load_extractor`.
        side: pixels to which images are resized for it.
        layers: how many of the backbone's last layers the head reads, side by side.
        loss: ``hinge``, ``bce``, or ``pairwise``: a reference beats the generated image of the same prompt.
        overall: weight of the image's one logit, in the loss and in the reward.
        patches: weight of the mean logit of its patches.
        patch_sample: how many patches of each image the head reads, in the loss and in the reward; None reads all.
            A round has one draw of places, the same for every image on every process: places of each image's own
            would add noise inside groups, which is all that an advantage is made of.
        hidden: width of the head.
        lr: Adam's rate for the head.
        batch: images of each side in a step; None for a round's.
        replay: share of generated images in a step that come from earlier rounds; ``pairwise`` has none.
        memory: images of earlier rounds that are kept, as features.
        schedule: fields of :class:`Schedule`.
        compat: ``official`` takes the released code's schedule, loss weights (1 and 0.3), whole-round steps and no
            replay. Its head was trained on raw and scored on normalised features; that mistake is not repeated.
        seed: of the head and of every draw.
    """

    def __init__(
        self,
        *,
        references: str,
        backbone: str = DEFAULT_BACKBONE,
        side: int | None = None,
        layers: int = 1,
        loss: Loss = "hinge",
        overall: float = 0.7,
        patches: float = 0.3,
        patch_sample: int | None = None,
        hidden: int = 512,
        lr: float = 1e-4,
        batch: int | None = 64,
        replay: float = 0.25,
        memory: int = 256,
        schedule: dict[str, Any] | None = None,
        compat: Literal["official"] | None = None,
        seed: int = 0,
    ) -> None:
        if loss not in ("hinge", "bce", "pairwise"):
            raise ValueError(f"Unknown discriminator loss {loss!r}; choose 'hinge', 'bce' or 'pairwise'.")
        if overall < 0 or patches < 0 or overall + patches == 0:
            raise ValueError(f"Expected weights >= 0, one of them above, got {overall} and {patches}.")
        if patch_sample is not None and patch_sample < 1:
            raise ValueError(f"Expected patch_sample >= 1 or none, got {patch_sample}.")
        if compat not in (None, "official") or (compat and schedule):
            raise ValueError(f"Expected compat 'official' without a schedule, or none, got {compat!r}.")
        self.weights = self.loss_weights = (overall, patches)
        self.patch_sample = patch_sample
        chosen = Schedule(**(schedule or {}))
        if compat:
            self.loss_weights, batch, replay, chosen = (1.0, 0.3), None, 0.0, OFFICIAL
        extractor = load_extractor(backbone, side=side, layers=layers)
        super().__init__(
            references=references,
            extractor=extractor,
            head=Head(extractor.width, hidden=hidden, generator=torch.Generator().manual_seed(seed)),
            loss=loss,
            lr=lr,
            batch=batch,
            replay=replay,
            memory=memory,
            schedule=chosen,
            seed=seed,
        )

    def _fit(self, raw: Features) -> None:
        """In standard deviations of the references' patches: a head learns little from uneven scales."""
        if self.patch_sample is not None and self.patch_sample > raw.patches.shape[1]:
            raise RewardError(
                f"patch_sample is {self.patch_sample}, but {self.extractor.name} sees {raw.patches.shape[1]} patches "
                f"at {self.extractor.side} pixels; choose at most that many, or leave it out to read all."
            )
        flat = raw.patches.flatten(0, 1)
        self._mean, self._scale = flat.mean(0), flat.std(0) + 1e-3 * flat.std()

    def logit(self, features: Features) -> Tensor:
        """Logit [n] of each image: weighted sum of its own and of the mean of its patches'."""
        overall, patches = (self.head(part) for part in self._read(features))
        return self.weights[0] * overall + self.weights[1] * patches.mean(1)

    def places(self, count: int) -> Tensor:
        """Which of ``count`` patches are read in this round, int64 [patch_sample]; of seed and round alone."""
        key = np.random.SeedSequence(
            (self.seed, self.round), spawn_key=(count,)
        )  # apart from a round's other draws
        generator = torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        return torch.randperm(count, generator=generator)[: self.patch_sample]

    def _read(self, features: Features) -> Features:
        """The features without the patches that this round leaves out."""
        if self.patch_sample is None:
            return features
        places = self.places(features.patches.shape[1]).to(features.patches.device)
        return Features(features.overall, features.patches[:, places])

    def score(self, features: Features, prompts: Sequence[str]) -> Tensor:
        """The logit [n]; this discriminator does not read."""
        return self.logit(features)

    def _loss(self, real: Features, fake: Features, prompts: Sequence[str]) -> Tensor:
        """Weighted sum over the image's own feature and its patches."""
        parts = [
            self._side(self.head(r), self.head(f))
            for r, f in zip(*map(self._read, (real, fake)), strict=True)
        ]
        return self.loss_weights[0] * parts[0] + self.loss_weights[1] * parts[1]

    def _side(self, real: Tensor, fake: Tensor) -> Tensor:
        if self.loss == "pairwise":
            return preference_loss(real.flatten(), fake.flatten()).mean()
        logit = torch.cat([real.flatten(), fake.flatten()])
        reference = torch.arange(len(logit), device=logit.device) < real.numel()
        return balanced(side_loss(logit, reference, kind=self.loss), reference)
