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
from imgrl.rewards.learning import Peers
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
    """Learn only in rounds whose images outscore the references (eq. 7, for preference rewards)."""
    every: int = 1
    """The policy trains in every so many-th round and the discriminator in the others; 1 is both in all."""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.steps < 1 or self.warmup < 0 or self.every < 1:
            raise ValueError(
                f"Expected steps >= 1, warmup >= 0, every >= 1, got {self.steps}, {self.warmup}, {self.every}."
            )
        if not 0.5 < self.enough <= 1:
            raise ValueError(f"Expected enough, an accuracy, in (0.5, 1], got {self.enough}.")

    def trains(self, round: int) -> bool:
        """Whether the policy trains in a round, counted from 0."""
        return round >= self.warmup and (round + 1) % self.every == 0

    def learns(self, round: int, measured: float, *, outscored: bool) -> bool:
        """Whether the discriminator learns from a round."""
        if round < self.warmup:
            return True
        if self.every > 1:
            return not self.trains(round)
        return measured <= self.enough and (outscored or not self.gate)


OFFICIAL = Schedule(steps=1, warmup=0, enough=1.0, every=10)
"""The released code's: nine rounds of one step for the discriminator, then one for the policy."""


class Adversarial:
    """The logit of a discriminator between references and generated images; its scale means nothing.

    Args:
        references: a folder of pictures or a JSON-lines file; see :func:`imgrl.rewards.references.load_references`.
        backbone: frozen network; see :func:`imgrl.rewards.features.load_extractor`.
        side: pixels to which images are resized for it.
        loss: ``hinge``, ``bce``, or ``pairwise``: a reference beats the generated image of the same prompt.
        overall: weight of the image's one logit, in the loss and in the reward.
        patches: weight of the mean logit of its patches.
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
        backbone: str = "efficientnet-lite0",
        side: int | None = None,
        loss: Loss = "hinge",
        overall: float = 0.7,
        patches: float = 0.3,
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
        if not lr > 0 or (batch is not None and batch < 2) or not 0 <= replay < 1:
            raise ValueError(
                f"Expected lr > 0, batch >= 2 or none, replay in [0, 1), got {lr}, {batch} and {replay}."
            )
        if compat not in (None, "official") or (compat and schedule):
            raise ValueError(f"Expected compat 'official' without a schedule, or none, got {compat!r}.")
        self.source, self.seed = references, seed
        self.loss: Loss = loss
        self.weights = self.loss_weights = (overall, patches)
        self.batch, self.share, self.schedule = batch, replay, Schedule(**(schedule or {}))
        if compat:
            self.loss_weights, self.batch, self.share, self.schedule = (1.0, 0.3), None, 0.0, OFFICIAL
        self.extractor: Extractor = load_extractor(backbone, side=side)
        head = Head(self.extractor.width, hidden=hidden, generator=torch.Generator().manual_seed(seed))
        self.head = head.to(self.extractor.device)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=lr, betas=(0.5, 0.999))
        self.replay = Replay(capacity=memory)
        self.round = 0
        self._references: References | None = None
        self._seen: Features | None = None
        self._scored: tuple[Tensor, Features] | None = None

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
        self._seen, self._scored = self._standard(raw), None

    def _standard(self, raw: Features) -> Features:
        """Features in standard deviations of the references' patches: a head learns little from uneven scales."""
        return Features(*((part - self._mean) / self._scale for part in raw))

    def _known(self) -> tuple[References, Features]:
        """The references and their features; RewardError before they have been seen."""
        if self._references is None or self._seen is None:
            raise RewardError("An adversarial reward must see its references first: call prepare().")
        return self._references, self._seen

    # --------------------------------------------------------------- scoring

    def features(self, images: Tensor) -> Features:
        """The one way from pixels to what the head reads; the images last scored are not looked at twice."""
        self._known()
        if self._scored is None or not torch.equal(self._scored[0], images):
            self._scored = (images, self._standard(self.extractor(images)))
        return self._scored[1]

    def logit(self, features: Features) -> Tensor:
        """Logit [n] of each image: weighted sum of its own and of the mean of its patches'."""
        overall, patches = self.head(features.overall), self.head(features.patches)
        return self.weights[0] * overall + self.weights[1] * patches.mean(1)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards [n] of images [n, 3, H, W] in [0, 1]: logits, higher is more like the references."""
        return self.logit(self.features(images)).cpu()

    # -------------------------------------------------------------- learning

    @property
    def waits(self) -> bool:
        """Whether the policy should not train on this round."""
        return not self.schedule.trains(self.round)

    def learn(self, images: Tensor, prompts: Sequence[str], *, peers: Peers) -> dict[str, float]:
        """Learn from one process's images of a round; returns what to log, the same on every process.

        Gradients are averaged over processes, and what decides is measured over all of them, so the head stays equal
        everywhere.
        """
        references, seen = self._known()
        key = (1_000_003 * self.seed + self.round) * 4096 + peers.rank  # each process draws for itself
        generator = torch.Generator().manual_seed(key)
        generated = self.features(images)
        own = _rows(seen, references.draw(prompts, generator))
        measured, ours, theirs = self._measured(own, generated, peers)
        learns = self.schedule.learns(self.round, measured, outscored=theirs > ours)
        losses = [
            self._step(own, generated, generator, peers) for _ in range(self.schedule.steps if learns else 0)
        ]
        self.replay.add(generated, generator)
        self.round += 1
        told = {"accuracy": measured, "margin": ours - theirs, "learned": float(learns)}
        return told | ({"loss": sum(losses) / len(losses)} if losses else {})

    @torch.no_grad()
    def _measured(self, own: Features, generated: Features, peers: Peers) -> tuple[float, float, float]:
        """Balanced accuracy, and mean score of references and of generated images, over all processes."""
        ours, theirs = self.logit(own), self.logit(generated)
        logit = torch.cat([ours, theirs])
        right = accuracy(logit, torch.arange(len(logit), device=logit.device) < len(ours))
        parts = peers.add_numbers([float(right), float(ours.mean()), float(theirs.mean())])
        right, mean_ours, mean_theirs = (part / peers.size for part in parts)
        return right, mean_ours, mean_theirs

    def _step(self, own: Features, generated: Features, generator: torch.Generator, peers: Peers) -> float:
        """One optimiser step; references are drawn with the generated images whose prompts they share."""
        chosen = torch.randperm(len(generated.overall), generator=generator)[: self.batch]
        fake, real = _rows(generated, chosen), _rows(own, chosen)
        old = int(self.share * len(chosen)) if self.loss != "pairwise" else 0
        if old and len(self.replay):
            past = self.replay.draw(old, generator)
            fake = Features(*(torch.cat([new[old:], kept]) for new, kept in zip(fake, past, strict=True)))
        parts = [self._loss(self.head(r), self.head(f)) for r, f in zip(real, fake, strict=True)]
        loss = self.loss_weights[0] * parts[0] + self.loss_weights[1] * parts[1]
        self.optimizer.zero_grad(set_to_none=True)
        (loss / peers.size).backward()
        peers.add_gradients(self.head.parameters())
        self.optimizer.step()
        return peers.add_numbers([float(loss.detach())])[0] / peers.size

    def _loss(self, real: Tensor, fake: Tensor) -> Tensor:
        if self.loss == "pairwise":
            return preference_loss(real.flatten(), fake.flatten()).mean()
        logit = torch.cat([real.flatten(), fake.flatten()])
        reference = torch.arange(len(logit), device=logit.device) < real.numel()
        return balanced(side_loss(logit, reference, kind=self.loss), reference)

    # ----------------------------------------------------------------- state

    def state_dict(self, peers: Peers) -> dict[str, Any]:
        """Everything that the next round depends on."""
        return {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(peers),
            "round": self.round,
        }

    def load_state_dict(self, state: dict[str, Any], peers: Peers) -> None:
        """Go on from a saved state."""
        self.head.load_state_dict(state["head"])
        kept = state["optimizer"]  # numbers of parameters are texts once they have been through JSON
        self.optimizer.load_state_dict({**kept, "state": {int(k): v for k, v in kept["state"].items()}})
        self.replay.load_state_dict(state["replay"], peers)
        self.round = int(state["round"])


def _rows(features: Features, rows: Tensor) -> Features:
    return Features(*(part[rows.to(part.device)] for part in features))
