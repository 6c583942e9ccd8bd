"""Reinforcement-aware distillation (RLAD, arXiv 2602.22495): a teacher inside the policy gradient's ratio.

The trust-region ratio compares the student with the unnormalised geometric mean of its old self and a teacher. Tokens
that the teacher likes start below the clip's upper bound and may move farther. ``alpha`` 1 is GRPO; the paper's prose
says the opposite of its equation 3, and this follows the equation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import identity
from imgrl.anchor.centering import Gather
from imgrl.objectives.text.base import Need, TextBatch, TextLoss, finite, kept, require
from imgrl.objectives.text.clipped import Clipped, online

__all__ = ["TRRD", "trust_log_ratio"]


def trust_log_ratio(
    log_prob: Float[Tensor, " n t"],
    old: Float[Tensor, " n t"],
    teacher: Float[Tensor, " n t"],
    *,
    alpha: float,
    limit: float | None = 1.0,
    straight_through: bool = False,
) -> Float[Tensor, " n t"]:
    """``alpha log(p / p_old) + (1 - alpha) clamp(log(p / p_teacher), -limit, limit)`` (eq. 3 and appendix B).

    Args:
        log_prob: live, [n, t].
        old: of the policy that wrote the tokens; no gradient.
        teacher: of the teacher on the same tokens; no gradient.
        alpha: share of the old policy in the mixture, 0 to 1.
        limit: of the teacher's part, nats; None clamps nothing.
        straight_through: whether gradients pass a saturated clamp (the paper does not say; a plain clamp stops them,
            which leaves ``alpha`` of the gradient).
    """
    own, other = log_prob - old.detach(), log_prob - teacher.detach()
    if limit is not None:
        clamped = other.clamp(-limit, limit)
        other = other + (clamped - other).detach() if straight_through else clamped
    return alpha * own + (1 - alpha) * other


@dataclass(frozen=True, kw_only=True)
class TRRD(Clipped):
    """GRPO whose ratio is anchored to the old policy and a teacher at once; the published setting as defaults."""

    name: ClassVar[str] = "trrd"
    paper: ClassVar[str] = "arXiv 2602.22495"
    kind: ClassVar[Literal["online"]] = "online"
    anchored: ClassVar[tuple[str, str, str]] = (
        "geometric mixture of old and teacher",
        "log-ratio",
        "denominator of the clipped ratio",
    )
    population: ClassVar[bool] = True
    """Advantages are divided by the deviation of the group itself, as the paper has it; TRL takes a sample's."""

    alpha: float = 0.5
    """1 is GRPO, 0 compares with the teacher alone."""
    limit: float | None = 1.0
    """Largest size of the teacher's log-ratio, nats."""
    straight_through: bool = False
    """Whether gradients pass where that limit holds."""
    clip_high: float = 0.28
    """Distance above 1."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"Expected alpha in [0, 1], got {self.alpha}; 1 is GRPO, 0 the teacher alone.")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"Expected limit > 0 nats, or none to clamp nothing, got {self.limit}.")

    @property
    def needs(self) -> frozenset[Need]:
        """Old and teacher log-probabilities, advantages, and the anchor where its weight is not 0."""
        teacher: Need = "teacher"
        return frozenset((*super().needs, *((teacher,) if self.alpha < 1 else ())))

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Clipped surrogate at the mixture's ratio, plus the KL, by token."""
        del gather
        plain, advantage = online(batch, self.name)
        log_ratio = plain
        metrics: dict[str, Tensor] = {}
        if self.alpha < 1:
            teacher = finite(batch, "teacher", self.name).detach()
            log_prob, old = (
                kept(batch.log_prob, batch.mask),
                kept(require(batch, "old", self.name), batch.mask),
            )
            log_ratio = trust_log_ratio(
                log_prob,
                old,
                teacher,
                alpha=self.alpha,
                limit=self.limit,
                straight_through=self.straight_through,
            )
            metrics["teacher_gap"] = (log_prob.detach() - teacher).abs()
        loss, shared = self.surrogate(log_ratio, advantage, batch.mask)
        # What the mixture alone has removed, before any step: not zero as in GRPO.
        metrics["clipped_at_old"] = self.removed(log_ratio - plain, advantage, batch.mask)
        return self.with_kl(loss, metrics | shared, batch)
