"""A reward that learns: how much an image looks like the references (Adv-GRPO, arXiv 2511.20256).

A small float32 head on frozen features is trained, round by round, to tell references from the policy's images, and its
logit is the reward. Training and scoring share one way from pixels to features, so the reward is the discriminator that
was trained. A round is scored first, by one discriminator, and learned from afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.discriminator import Head, accuracy, balanced, preference_loss, side_loss
from imgrl.rewards.features import Extractor, Features, load_extractor
from imgrl.rewards.references import References, load_references
from imgrl.rewards.replay import Replay

__all__ = ["Adversarial", "Schedule"]

Loss = Literal["hinge", "bce", "pairwise"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the discriminator learns, and when the policy waits for it."""

    steps: int = 8
    """Optimiser steps of the discriminator on each rollout."""
    warmup: int = 5
    """Rounds at the start in which only the discriminator learns."""
    enough: float = 0.95
    """Balanced accuracy above which it rests for a round, so that the policy can catch up."""
    gate: bool = False
    """Learn only in rounds whose images outscore the references (the paper's rule for preference rewards)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.steps < 1 or self.warmup < 0:
            raise ValueError(f"Expected steps >= 1 and warmup >= 0, got {self.steps} and {self.warmup}.")
        if not 0.5 < self.enough <= 1:
            raise ValueError(f"Expected enough, an accuracy, in (0.5, 1], got {self.enough}.")

    def learns(self, round: int, measured: float, *, outscored: bool) -> bool:
        """Whether the discriminator learns from this round."""
        if round < self.warmup:
            return True
        return measured <= self.enough and (outscored or not self.gate)


class Adversarial:
    """The logit of a discriminator between references and generated images; its scale means nothing.

    Args:
        references: a folder of pictures or a JSON-lines file; see :func:`imgrl.rewards.references.load_references`.
        backbone: frozen network; see :func:`imgrl.rewards.features.load_extractor`.
        side: pixels to which images are resized for it.
        loss: ``hinge``, ``bce``, or ``pairwise``: a reference beats the generated image of the same prompt.
        overall: weight of the image's one logit.
        patches: weight of the mean logit of its patches.
        hidden: width of the head.
        lr: Adam's rate for the head.
        batch: images of each side in a step.
        replay: share of generated images in a step that come from earlier rounds.
        schedule: fields of :class:`Schedule`.
        seed: of the head and of every draw.
    """

    def __init__(
        self,
        *,
        references: str,
        backbone: str = "efficientnet-lite0",
        side: int | None = None,
        loss: Loss = "hinge",
        overall: float = 0.7,
        patches: float = 0.3,
        hidden: int = 512,
        lr: float = 1e-4,
        batch: int = 64,
        replay: float = 0.25,
        schedule: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if loss not in ("hinge", "bce", "pairwise"):
            raise ValueError(f"Unknown discriminator loss {loss!r}; choose 'hinge', 'bce' or 'pairwise'.")
        if overall < 0 or patches < 0 or overall + patches == 0:
            raise ValueError(f"Expected weights >= 0, one of them above, got {overall} and {patches}.")
        if not lr > 0 or batch < 2 or not 0 <= replay < 1:
            raise ValueError(
                f"Expected lr > 0, batch >= 2, replay in [0, 1), got {lr}, {batch} and {replay}."
            )
        self.source, self.loss, self.weights = references, loss, (overall, patches)
        self.batch, self.share, self.seed = batch, replay, seed
        self.schedule = Schedule(**(schedule or {}))
        self.extractor: Extractor = load_extractor(backbone, side=side)
        self.head = Head(self.extractor.width, hidden=hidden, generator=torch.Generator().manual_seed(seed))
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=lr, betas=(0.5, 0.999))
        self.replay = Replay(capacity=16 * batch)
        self.round = 0
        self._references: References | None = None
        self._seen: Features | None = None

    # ------------------------------------------------------------ references

    def prepare(self, *, height: int, width: int, round_trip: Callable[[Tensor], Tensor]) -> None:
        """Read the references and see them as the policy would draw them.

        Args:
            height: of the policy's images.
            width: of the policy's images.
            round_trip: images [n, 3, H, W] in [0, 1] through the policy's own autoencoder. Without it the easiest
                difference between the two sides is the autoencoder's fingerprint, which no policy can change.
        """
        self._references = load_references(self.source, height=height, width=width, least=2)
        drawn = [round_trip(part.float() / 255) for part in self._references.images.split(32)]
        raw = self.extractor(torch.cat(drawn))
        flat = raw.patches.flatten(0, 1)
        self._mean, self._scale = flat.mean(0), flat.std(0) + 1e-3 * flat.std()
        self._seen = self._standard(raw)

    def _standard(self, raw: Features) -> Features:
        """Features in standard deviations of the references' patches: a head learns little from uneven scales."""
        return Features(*((part - self._mean) / self._scale for part in raw))

    @property
    def _known(self) -> tuple[References, Features]:
        if self._references is None or self._seen is None:
            raise RewardError("An adversarial reward must see its references first: call prepare().")
        return self._references, self._seen

    # --------------------------------------------------------------- scoring

    def features(self, images: Tensor) -> Features:
        """The one way from pixels to what the head reads."""
        self._known  # noqa: B018 - says what is missing
        return self._standard(self.extractor(images))

    def logit(self, features: Features) -> Tensor:
        """Logit [n] of each image: weighted sum of its own and of the mean of its patches'."""
        return self.weights[0] * self.head(features.overall) + self.weights[1] * self.head(
            features.patches
        ).mean(1)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards [n] of images [n, 3, H, W] in [0, 1]: logits, higher is more like the references."""
        return self.logit(self.features(images))

    # -------------------------------------------------------------- learning

    @property
    def waits(self) -> bool:
        """Whether the policy should wait: the discriminator has not yet seen enough."""
        return self.round < self.schedule.warmup

    def learn(
        self,
        images: Tensor,
        prompts: Sequence[str],
        *,
        average: Callable[[list[torch.nn.Parameter]], None] = lambda _: None,
    ) -> dict[str, float]:
        """Learn from one process's images of a round; returns what to log.

        ``average`` replaces gradients by their mean over processes, which keeps the head equal on all of them.
        """
        references, seen = self._known
        generator = torch.Generator().manual_seed(hash((self.seed, self.round)) % 2**63)
        rows = references.draw(prompts, generator)
        generated, own = self.features(images), _rows(seen, rows)
        with torch.no_grad():
            scores, ours = self.logit(generated), self.logit(own)
        measured = _accuracy(ours, scores)
        outscored = bool(scores.mean() > ours.mean())
        learns = self.schedule.learns(self.round, measured, outscored=outscored)
        losses = []
        for _ in range(self.schedule.steps if learns else 0):
            losses.append(self._step(generated, own, generator, average))
        self.replay.add(generated, generator)
        self.round += 1
        return {
            "accuracy": measured,
            "margin": float(ours.mean() - scores.mean()),
            "loss": sum(losses) / len(losses) if losses else float("nan"),
            "learned": float(learns),
        }

    def _step(
        self,
        generated: Features,
        own: Features,
        generator: torch.Generator,
        average: Callable[[list[torch.nn.Parameter]], None],
    ) -> float:
        """One optimiser step; references are drawn with the generated images whose prompts they share."""
        count = len(generated.overall)
        chosen = torch.randperm(count, generator=generator)[: self.batch]
        fake, real = _rows(generated, chosen), _rows(own, chosen)
        old = int(self.share * len(chosen))
        if self.loss != "pairwise" and old and len(self.replay):
            past = self.replay.draw(old, generator)
            fake = Features(*(torch.cat([a[old:], b]) for a, b in zip(fake, past, strict=True)))
        parts = [self._loss(self.head(r), self.head(f)) for r, f in zip(real, fake, strict=True)]
        loss = self.weights[0] * parts[0] + self.weights[1] * parts[1]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average(list(self.head.parameters()))
        self.optimizer.step()
        return float(loss.detach())

    def _loss(self, real: Tensor, fake: Tensor) -> Tensor:
        if self.loss == "pairwise":
            return preference_loss(real.flatten(), fake.flatten()).mean()
        logit = torch.cat([real.flatten(), fake.flatten()])
        reference = torch.arange(len(logit), device=logit.device) < real.numel()
        return balanced(side_loss(logit, reference, kind=self.loss), reference)

    # ----------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        return {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "round": self.round,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.round = int(state["round"])


def _rows(features: Features, rows: Tensor) -> Features:
    return Features(*(part[rows] for part in features))


def _accuracy(real: Tensor, fake: Tensor) -> float:
    logit = torch.cat([real, fake])
    return float(accuracy(logit, torch.arange(len(logit)) < len(real)))
