"""KDRL (arXiv 2506.02208): GRPO with a reverse KL to a teacher beside it, on the student's own tokens.

What RLAD (arXiv 2602.22495) compares itself with: there the teacher stands inside the ratio, here it is a second term
whose strength must be balanced against the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from imgrl.anchor import identity
from imgrl.anchor.centering import Gather
from imgrl.objectives.text.base import Need, Reduction, TextBatch, TextLoss
from imgrl.objectives.text.clipped import Clipped, KlEstimate, online, policy_kl

__all__ = ["KDRL"]


@dataclass(frozen=True, kw_only=True)
class KDRL(Clipped):
    """Clipped policy gradient plus ``kl_weight`` times the KL to the teacher.

    ``kl`` is estimated on the tokens of the rollout, so ``exact`` is refused: the teacher scores only those. The
    default ``k2`` has the reverse KL's gradient. The strength is the paper's.
    """

    name: ClassVar[str] = "kdrl"
    paper: ClassVar[str] = "arXiv 2506.02208"
    kind: ClassVar[Literal["online"]] = "online"
    anchored: ClassVar[tuple[str, str, str]] = (
        "old (each rollout); teacher",
        "ratio; reverse KL",
        "clipped ratio; added",
    )

    kl_weight: float = 2e-3
    """Strength of the KL to the teacher; above 0."""
    kl: KlEstimate = "k2"
    """How it is computed."""
    reduction: Reduction = "token"
    """The paper counts every token alike."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        super().__post_init__()
        if self.kl_weight == 0:
            raise ValueError("Expected kl_weight > 0, got 0: without its teacher, kdrl is grpo.")
        if self.kl == "exact":
            raise ValueError(
                "Expected kl to be k1, k2 or k3, got 'exact': the teacher scores the written tokens only."
            )

    @property
    def needs(self) -> frozenset[Need]:
        """Old and teacher log-probabilities, and advantages."""
        return frozenset(("old", "advantage", "teacher"))

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Clipped surrogate plus the KL to the teacher, by token."""
        del gather
        log_ratio, advantage = online(batch, self.name)
        loss, metrics = self.surrogate(log_ratio, advantage, batch.mask)
        kl = policy_kl(batch, estimate=self.kl, name=self.name, weighted=self.kl_weighted, anchor="teacher")
        metrics["teacher_kl"] = kl.detach()
        return TextLoss(loss + self.kl_weight * kl, metrics)
