"""ReMix (arXiv 2507.06892): proximal policy gradients on a mix of fresh and replayed groups, between two anchors.

Replayed tokens carry the probabilities of the policy that wrote them. The clip interval is centred on the ratio that
the policy had at the start of the step, so the trust region stays around that policy, however old the data. The KL is a
convex mix of those to the base and to the policy before the last update; by the identity
``lam KL(p || a) + (1 - lam) KL(p || b) = KL(p || g) + const``, ``g`` the geometric mixture, that is one anchor.
Reincarnation renews the base and ends the replay; both are the trainer's to do.

Two readings are ours. The paper does not say how its KLs are estimated: here they are exact. Nor does it say what a
replayed group's advantages are: here those of the step that wrote it, which its rewards and no policy decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from imgrl.anchor import Piecewise, Schedule, identity
from imgrl.anchor.centering import Gather
from imgrl.objectives.surrogate import clipped_surrogate
from imgrl.objectives.text.base import Need, Reduction, TextBatch, TextLoss, finite, kept, require
from imgrl.objectives.text.clipped import check_clip, check_kl, clip_share, online

__all__ = ["LAM", "ReMix", "draw_ages"]

LAM = Piecewise(points=((0, 1.0), (51, 0.9), (61, 0.8), (71, 0.7), (81, 0.6), (91, 0.5)))
"""Published share of the base: ``max(1 - 0.1 ceil(max(step - 50, 0) / 10), 0.5)``."""


def draw_ages(
    count: int, *, replay: float, available: Sequence[int], generator: torch.Generator
) -> list[int]:
    """How old each of ``count`` groups of a batch should be: 0 is fresh, ``i`` written ``i`` steps ago.

    With probability ``replay`` an age is drawn evenly from ``available`` (the ages in store), else it is 0. While
    nothing is in store every group is fresh. Even drawing is our reading; the paper names a distribution without
    giving it.
    """
    if not 0 <= replay <= 1:
        raise ValueError(f"Expected a replay share in [0, 1], got {replay}.")
    old = torch.rand(count, generator=generator) < replay
    which = torch.randint(max(len(available), 1), (count,), generator=generator)
    return [available[int(i)] if o and available else 0 for o, i in zip(old, which, strict=True)]


@dataclass(frozen=True, kw_only=True)
class ReMix:
    """Mix-policy proximal objective with the KL-convex term.

    Clip, KL strength and entropy bonus are not published; these are common values.
    """

    name: ClassVar[str] = "remix"
    paper: ClassVar[str] = "arXiv 2507.06892"
    kind: ClassVar[Literal["online"]] = "online"
    anchored: ClassVar[tuple[str, str, str]] = (
        "lam base + (1 - lam) previous policy; base renewed once",
        "reverse KL, exact; ratio",
        "added; centre of the clip",
    )

    clip: float = 0.2
    """Distance from the ratio at the start of the step beyond which a ratio earns no gradient."""
    kl_weight: float = 1e-3
    """Strength of the KL-convex term; 0 needs no anchor."""
    lam: Schedule = LAM
    """Share of the base in it by rollout; the rest goes to the previous policy."""
    entropy_weight: float = 0.0
    """Entropy bonus."""
    replay: float = 0.4
    """Share of groups taken from earlier steps."""
    history: int = 2
    """Steps that are kept."""
    passes: int = 2
    """Updates on each batch."""
    reincarnate_at: int | None = 50
    """Rollout at which the base becomes the current policy and replay ends; None is never."""
    reduction: Reduction = "token"
    """How tokens are averaged."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        check_clip(min(self.clip, 1.0), self.clip)
        check_kl(self.kl_weight, "exact", False, self.reduction)
        if not 0 <= self.entropy_weight < float("inf"):
            raise ValueError(f"Expected a finite entropy_weight >= 0, got {self.entropy_weight}; 0 is none.")
        if not 0 <= self.replay <= 1 or self.history < 1 or self.passes < 1:
            raise ValueError(
                f"Expected replay in [0, 1], history >= 1 and passes >= 1, got {self.replay}, {self.history} and "
                f"{self.passes}; replay=0 and passes=1 is on-policy."
            )
        if self.reincarnate_at is not None and self.reincarnate_at < 1:
            raise ValueError(f"Expected reincarnate_at >= 1, or none for never, got {self.reincarnate_at}.")

    def replays(self, step: int) -> bool:
        """Whether the batch of a rollout mixes in older groups."""
        return self.replay > 0 and (self.reincarnate_at is None or step < self.reincarnate_at)

    @property
    def needs(self) -> frozenset[Need]:
        """Old and current log-probabilities, advantages, and what weights above 0 ask for."""
        wanted: set[Need] = {"old", "current", "advantage"}
        if self.kl_weight > 0:
            wanted |= {"reverse_kl", "previous_kl"}
        if self.entropy_weight > 0:
            wanted.add("entropy")
        return frozenset(wanted)

    def needs_at(self, step: int) -> frozenset[Need]:
        """``needs`` less the KLs that ``lam`` gives no weight at a rollout; the anchors still move on."""
        lam = self.lam(step)
        idle: dict[Need, float] = {"reverse_kl": lam, "previous_kl": 1 - lam}
        return self.needs - {name for name, weight in idle.items() if weight == 0}

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Clipped surrogate, KL-convex term and entropy bonus, by token."""
        del gather
        log_ratio, advantage = online(batch, self.name)
        current = kept(require(batch, "current", self.name), batch.mask).detach()
        old = kept(require(batch, "old", self.name), batch.mask).detach()
        centre = (current - old).exp()
        surrogate = clipped_surrogate(log_ratio, advantage, low=self.clip, high=self.clip, centre=centre)
        loss = kept(surrogate, batch.mask)
        metrics = {
            "policy_loss": loss.detach(),
            "ratio": kept(log_ratio.detach().exp(), batch.mask),
            "clipped": clip_share(
                log_ratio, advantage, batch.mask, low=self.clip, high=self.clip, centre=centre
            ),
        }
        if self.kl_weight > 0:
            lam, needs = self.lam(batch.step), self.needs_at(batch.step)
            shares: list[tuple[Need, str, float]] = [
                ("reverse_kl", "anchor_kl", lam),
                ("previous_kl", "previous_kl", 1 - lam),
            ]
            for field, shown, share in shares:
                if field in needs:
                    kl = finite(batch, field, self.name)
                    metrics[shown] = kl.detach()
                    loss = loss + self.kl_weight * share * kl
        if self.entropy_weight > 0:
            entropy = kept(require(batch, "entropy", self.name), batch.mask)
            metrics["entropy"] = entropy.detach()
            loss = loss - self.entropy_weight * entropy
        return TextLoss(loss, metrics)
