"""The rounds of a discriminator, whatever it is made of: references, schedule, steps, and what a checkpoint keeps.

A round is scored first, by one discriminator, and learned from afterwards. Training and scoring share one way from
pixels to features (:mod:`imgrl.rewards.feature_store`), so the reward is the discriminator that was trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imgrl.errors import RewardError
from imgrl.rewards.discriminator import accuracy, preferred
from imgrl.rewards.feature_store import FeatureStore
from imgrl.rewards.features import Extractor, Features, moved, rows_of
from imgrl.rewards.fingerprint import digest
from imgrl.rewards.learning import Peers
from imgrl.rewards.references import References
from imgrl.rewards.replay import Replay
from imgrl.rewards.schedule import Schedule

__all__ = ["Loss", "Rival"]

Loss = Literal["hinge", "bce", "pairwise"]


class Rival(FeatureStore, ABC):
    """A reward that learns to tell references from the policy's images.

    Args:
        references: see :func:`imgrl.rewards.references.load_references`.
        extractor: the frozen part: pixels to features.
        head: the part that is trained, float32; features to logits.
        loss: ``hinge``, ``bce`` or ``pairwise``.
        lr: Adam's rate.
        batch: images of each side in a step; None for a round's.
        replay: share of generated images in a step that come from earlier rounds; ``pairwise`` has none.
        memory: images of earlier rounds that are kept, as features.
        schedule: when it learns.
        seed: of every draw.
    """

    def __init__(
        self,
        *,
        references: str,
        extractor: Extractor,
        head: nn.Module,
        loss: Loss,
        lr: float,
        batch: int | None,
        replay: float,
        memory: int,
        schedule: Schedule,
        seed: int,
    ) -> None:
        if not lr > 0 or (batch is not None and batch < 2) or not 0 <= replay < 1:
            raise ValueError(
                f"Expected lr > 0, batch >= 2 or none, replay in [0, 1), got {lr}, {batch} and {replay}."
            )
        super().__init__(references, extractor)
        self.seed = seed
        self.loss: Loss = loss
        self.batch, self.schedule = batch, schedule
        self.share = replay if loss != "pairwise" else 0.0  # an old image has no reference of its prompt
        self.head = head.to(extractor.device)
        trained = [parameter for parameter in self.head.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=lr, betas=(0.5, 0.999))
        self.replay = Replay(capacity=memory)
        self.round = 0

    # --------------------------------------------------------------- scoring

    @abstractmethod
    def score(self, features: Features, prompts: Sequence[str]) -> Tensor:
        """Reward [n] of each image for its prompt: higher is more like the references."""

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards [n] of images [n, 3, H, W] in [0, 1]: logits, higher is more like the references."""
        return self.score(self.features(images), prompts).cpu()

    # -------------------------------------------------------------- learning

    def _draw(
        self, references: References, prompts: Sequence[str], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[str]]:
        """Rows [n] of the references to compare with images of ``prompts``, and the texts these are scored with."""
        return references.draw(prompts, generator), prompts

    @property
    def waits(self) -> bool:
        """Whether the policy should not train on this round."""
        return not self.schedule.trains(self.round)

    def learn(self, images: Tensor, prompts: Sequence[str], *, peers: Peers) -> dict[str, float]:
        """Learn from one process's images of a round; returns what to log, the same on every process.

        Gradients are averaged over processes, and what decides is measured over all of them, so the head stays equal
        everywhere.
        """
        references, seen = self._known(), self._seen
        if seen is None:
            raise RewardError(
                "An adversarial reward learns from references that it has seen: call prepare()."
            )
        key = (1_000_003 * self.seed + self.round) * 4096 + peers.rank  # each process draws for itself
        generator = torch.Generator().manual_seed(key)
        generated = self.features(images)
        self._memory.clear()
        if self.round == 0:
            self._begin(references, seen, generator, peers)
        rows, captions = self._draw(references, prompts, generator)
        own = moved(rows_of(seen, rows), generated.overall.device)
        measured, ours, theirs = self._measured(own, generated, captions, prompts, peers)
        learns = self.schedule.learns(self.round, measured, outscored=theirs > ours)
        losses = [
            self._step(own, generated, captions, prompts, generator, peers)
            for _ in range(self.schedule.steps if learns else 0)
        ]
        if self.share:
            self.replay.add(generated, generator)
        self.round += 1
        told = {"accuracy": measured, "margin": ours - theirs, "learned": float(learns)}
        return told | ({"loss": sum(losses) / len(losses)} if losses else {})

    @torch.no_grad()
    def _measured(
        self,
        own: Features,
        generated: Features,
        captions: Sequence[str],
        prompts: Sequence[str],
        peers: Peers,
    ) -> tuple[float, float, float]:
        """Accuracy, and mean score of references and of generated images, over all processes."""
        ours, theirs = self.score(own, captions), self.score(generated, prompts)
        right = self._accuracy(ours, theirs)
        parts = peers.add_numbers([float(right), float(ours.mean()), float(theirs.mean())])
        share, mean_ours, mean_theirs = (part / peers.size for part in parts)
        return share, mean_ours, mean_theirs

    def _accuracy(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Share that is told apart, 0.5 by chance; ``enough`` of the schedule is of this kind.

        Of pairs where the loss knows only differences, so that a score of 0 means nothing.
        """
        if self.loss == "pairwise":
            return preferred(ours, theirs)
        logit = torch.cat([ours, theirs])
        return accuracy(logit, torch.arange(len(logit), device=logit.device) < len(ours))

    def _step(
        self,
        own: Features,
        generated: Features,
        captions: Sequence[str],
        prompts: Sequence[str],
        generator: torch.Generator,
        peers: Peers,
    ) -> float:
        """One optimiser step; references are drawn with the generated images whose prompts they share."""
        chosen = torch.randperm(len(generated.overall), generator=generator)[: self.batch]
        fake, real = rows_of(generated, chosen), rows_of(own, chosen)
        old = int(self.share * len(chosen))
        if old and len(self.replay):
            past = moved(self.replay.draw(old, generator), fake.overall.device)
            fake = Features(*(torch.cat([new[old:], kept]) for new, kept in zip(fake, past, strict=True)))
        shown, asked = ([texts[int(row)] for row in chosen] for texts in (captions, prompts))
        return self._descend(
            self._loss(real, fake, captions=shown, prompts=asked, generator=generator), peers
        )

    def _descend(self, loss: Tensor, peers: Peers) -> float:
        """One optimiser step on the mean of all processes' losses, which is returned."""
        self.optimizer.zero_grad(set_to_none=True)
        (loss / peers.size).backward()
        peers.add_gradients(self.optimizer.param_groups[0]["params"])
        self.optimizer.step()
        return peers.add_numbers([float(loss.detach())])[0] / peers.size

    def _begin(  # noqa: B027  most kinds learn nothing from references alone
        self, references: References, seen: Features, generator: torch.Generator, peers: Peers
    ) -> None:
        """What a kind learns from the references alone, before it learns from the first round."""

    @abstractmethod
    def _loss(
        self,
        real: Features,
        fake: Features,
        *,
        captions: Sequence[str],
        prompts: Sequence[str],
        generator: torch.Generator,
    ) -> Tensor:
        """Loss [] of references, which show ``captions``, and of as many images generated for ``prompts``.

        Row by row of the same prompts where references belong to prompts, replay aside.
        """

    # ----------------------------------------------------------------- state

    def state_dict(self, peers: Peers) -> dict[str, Any]:
        """Everything that the next round depends on.

        Raises:
            RewardError: if the processes' heads have come apart.
        """
        # 63 bits of a digest: what a signed number holds.
        mark = int(digest({k: v.cpu() for k, v in self.head.state_dict().items()})[:16], 16) >> 1
        marks = peers.gather(torch.tensor([mark], device=peers.device)).tolist()
        if len(set(marks)) > 1:
            raise RewardError(
                f"The discriminator differs between the {peers.size} processes, which must all train the same one; "
                "go on from the last checkpoint, and report this with the run's environment.json."
            )
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
