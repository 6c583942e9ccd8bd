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
from imgrl.rewards.features import DEFAULT_BACKBONE, Features, load_extractor, moved, rows_of
from imgrl.rewards.foils import Foils
from imgrl.rewards.learning import Peers
from imgrl.rewards.prompt_head import PromptHead
from imgrl.rewards.references import References
from imgrl.rewards.rival import Loss, Rival
from imgrl.rewards.schedule import OFFICIAL, Schedule

__all__ = ["Adversarial", "Schedule"]


_STUDIED = 64
"""References in a step of studying, where ``batch`` names no number."""


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
        conditional: read the prompt too. References need captions, and the head also learns that a reference beside
            another one's caption is wrong (matching-aware, arXiv 1605.05396), so that it asks for obedience as well
            as for looks. There is no replay, and ``pairwise`` is not for it. Half of
            the wrong captions are right but for one word (:class:`imgrl.rewards.foils.Foils`).
        mismatch: share of those wrong captions in the loss of what is no reference.
        study: steps on references and their captions alone, before the first round: a policy that is judged by a
            reader of few words soon drops the others.
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
        conditional: bool = False,
        mismatch: float = 0.5,
        study: int = 0,
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
        if not 0 <= mismatch < 1 or (conditional and loss == "pairwise"):
            raise ValueError(
                f"Expected mismatch in [0, 1) and, where conditional, loss hinge or bce, got {mismatch} and {loss!r}."
            )
        if compat not in (None, "official") or (compat and schedule):
            raise ValueError(f"Expected compat 'official' without a schedule, or none, got {compat!r}.")
        self.weights = self.loss_weights = (overall, patches)
        if study < 0 or (study and not (conditional and mismatch)):
            raise ValueError(
                f"Expected study >= 0 and, to study captions, conditional with a mismatch, got {study}."
            )
        self.patch_sample, self.conditional, self.mismatch = patch_sample, conditional, mismatch
        self.study = study
        self._foils = Foils(())
        chosen = Schedule(**(schedule or {}))
        if compat:
            self.loss_weights, batch, replay, chosen = (1.0, 0.3), None, 0.0, OFFICIAL
        extractor = load_extractor(backbone, side=side, layers=layers)
        head = PromptHead if conditional else Head
        super().__init__(
            references=references,
            extractor=extractor,
            head=head(extractor.width, hidden=hidden, generator=torch.Generator().manual_seed(seed)),
            loss=loss,
            lr=lr,
            batch=batch,
            replay=0.0 if conditional else replay,  # the features of an old image do not know its prompt
            memory=memory,
            schedule=chosen,
            seed=seed,
        )

    def _load(self, height: int, width: int) -> References:
        """The references, whose captions say which words can stand for one another."""
        references = super()._load(height, width)
        self._foils = Foils(text for text, _ in references.captions)
        return references

    def _fit(self, raw: Features) -> None:
        """In standard deviations of the references' patches: a head learns little from uneven scales."""
        if self.patch_sample is not None and self.patch_sample > raw.patches.shape[1]:
            raise RewardError(
                f"patch_sample is {self.patch_sample}, but {self.extractor.name} sees {raw.patches.shape[1]} patches "
                f"at {self.extractor.side} pixels; choose at most that many, or leave it out to read all."
            )
        flat = raw.patches.flatten(0, 1)
        self._mean, self._scale = flat.mean(0), flat.std(0) + 1e-3 * flat.std()

    def logit(self, features: Features, prompts: Sequence[str] = ()) -> Tensor:
        """Logit [n] of each image: weighted sum of its own and of the mean of its patches'.

        Prompts, one an image, count for a conditional head only.
        """
        features = self._read(features)
        overall, patches = self._overall(features, prompts), self.head(features.patches).mean(1)
        return self.weights[0] * overall + self.weights[1] * patches

    def _overall(self, features: Features, prompts: Sequence[str]) -> Tensor:
        logit = self.head(features.overall)
        if isinstance(self.head, PromptHead):
            logit = logit + self.head.agreement(features.patches, prompts)
        return logit

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
        """The logit [n]."""
        return self.logit(features, prompts)

    def _draw(
        self, references: References, prompts: Sequence[str], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[str]]:
        if self.conditional:
            return references.draw_captioned(prompts, generator)
        return super()._draw(references, prompts, generator)

    def check_learning(self, prompts: Sequence[str]) -> None:
        """As every rival's; a conditional one takes any prompt, but needs captions.

        Raises:
            RewardError: if nothing says what the references show.
        """
        if not self.conditional:
            super().check_learning(prompts)
        elif not self._known().captions:
            raise RewardError(
                f"A conditional discriminator reads what its references show, but {self.source} does not say it; "
                "name captions in a .csv or .jsonl file, or leave conditional out."
            )

    def _begin(
        self, references: References, seen: Features, generator: torch.Generator, peers: Peers
    ) -> None:
        """Learn to read: whether a reference shows a caption."""
        if len({text for text, _ in references.captions}) < 2:  # none of them could be wrong
            return
        for _ in range(self.study):
            drawn = torch.randint(len(references.captions), (self.batch or _STUDIED,), generator=generator)
            texts, rows = zip(*(references.captions[int(place)] for place in drawn), strict=True)
            real = self._read(moved(rows_of(seen, torch.tensor(rows)), self.extractor.device))
            ours, mistaken = self._overall(real, texts), self._mistaken(real, texts, generator)
            # None by chance, and not on the processes that this one adds gradients with: it steps with them.
            self._descend(0 * ours.sum() if mistaken is None else self._side(ours, mistaken), peers)

    def _loss(
        self,
        real: Features,
        fake: Features,
        *,
        captions: Sequence[str],
        prompts: Sequence[str],
        generator: torch.Generator,
    ) -> Tensor:
        """Weighted sum over the image's own feature and its patches."""
        real, fake = self._read(real), self._read(fake)
        ours = self._overall(real, captions)
        overall = self._side(ours, self._overall(fake, prompts))
        patches = self._side(self.head(real.patches), self.head(fake.patches))
        mistaken = self._mistaken(real, captions, generator) if self.conditional and self.mismatch else None
        if mistaken is not None:
            overall = (1 - self.mismatch) * overall + self.mismatch * self._side(ours, mistaken)
        return self.loss_weights[0] * overall + self.loss_weights[1] * patches

    def _mistaken(self, real: Features, captions: Sequence[str], generator: torch.Generator) -> Tensor | None:
        """Logits of references beside wrong captions; None if there are none.

        Every second picture gets its own caption with one word exchanged, the others the next one's.
        """
        following = [*captions[1:], *captions[:1]]
        wrong = [
            (self._foils.of(caption, generator) if row % 2 else None) or following[row]
            for row, caption in enumerate(captions)
        ]
        apart = [row for row, caption in enumerate(captions) if caption != wrong[row]]
        if not apart:
            return None
        return self._overall(rows_of(real, torch.tensor(apart)), [wrong[row] for row in apart])

    def _side(self, real: Tensor, fake: Tensor) -> Tensor:
        if self.loss == "pairwise":
            return preference_loss(real.flatten(), fake.flatten()).mean()
        logit = torch.cat([real.flatten(), fake.flatten()])
        reference = torch.arange(len(logit), device=logit.device) < real.numel()
        return balanced(side_loss(logit, reference, kind=self.loss), reference)
