"""Recursive meta-distillation (arXiv 2601.13100): every generation learns from the last one, held by base teachers.

Of the paper only the abstract was read: operators on distributions, anchored in base teachers, that contract. The
operators, the student's update and every statement about them here are a reconstruction, proven or tested by
themselves. With ``q`` the last generation, ``p`` the base and ``lam`` in [0, 1] the anchoring strength:

    arithmetic  M(q) = (1 - lam) q + lam p
    geometric   M(q) ~ q^(1 - lam) p^lam
    history     M(q_t, q_t-1, ...) = (1 - lam) sum_j a_j q_t-j + lam p

All leave ``p`` where it is and satisfy KL(p || M(q)) <= (1 - lam) KL(p || q) (history: of the largest in its
window). In the other direction, KL(M(q) || p), that holds for the arithmetic operator only. At ``lam`` 0 every
distribution is a fixed point and nothing corrects an error; applying ``lam`` t times is one application of
``1 - (1 - lam)^t``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import Mixture, categorical_kl, identity
from imgrl.anchor.centering import Gather
from imgrl.objectives.text.base import Need, Reduction, TextBatch, TextLoss, finite

__all__ = ["MetaDistill", "Operator", "meta_distill_loss", "meta_target"]

Operator = Literal["arithmetic", "geometric", "history"]


def meta_target(
    *generations: Float[Tensor, " *n v"],
    base: Float[Tensor, " *n v"],
    strength: float,
    operator: Operator = "arithmetic",
    history: tuple[float, ...] = (0.6, 0.4),
) -> Float[Tensor, " *n v"]:
    """Log-probabilities of ``M(generations)``, without gradient.

    Args:
        *generations: logits or log-probabilities of the last generation; for ``history`` of the last
            ``len(history)`` generations, newest first.
        base: logits or log-probabilities of the base teachers' distribution (several teachers: their ``Mixture``).
        strength: ``lam``; 0 keeps the last generation, 1 is the base.
        operator: how both are combined.
        history: weights of the generations, summing to 1; only ``history`` reads it.

    Raises:
        ValueError: for a wrong number of generations, a strength outside [0, 1] or an unknown operator.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"Expected an anchoring strength in [0, 1], got {strength}; 0.1 to 0.5 is usual.")
    if operator not in get_args(Operator):
        raise ValueError(f"Unknown operator {operator!r}; choose one of {', '.join(get_args(Operator))}.")
    own = history if operator == "history" else (1.0,)
    if len(generations) != len(own):
        raise ValueError(
            f"Expected {len(own)} generations for the {operator} operator, got {len(generations)}; "
            "pass the last ones, newest first."
        )
    mixture = Mixture(
        weights=(*((1 - strength) * weight for weight in own), strength),
        space="log" if operator == "geometric" else "prob",
    )
    return mixture(*generations, base)


def meta_distill_loss(logits: Float[Tensor, " *n v"], target: Float[Tensor, " *n v"]) -> Float[Tensor, " *n"]:
    """The student's loss ``KL(target || student)`` by position, nats; its gradient in the logits is student - target.

    Args:
        logits: live, of the student.
        target: log-probabilities from ``meta_target``.
    """
    return categorical_kl(logits, target, direction="forward")


@dataclass(frozen=True, kw_only=True)
class MetaDistill:
    """Distillation of the last generation, anchored in the base.

    The trainer freezes the student at each generation's start, mixes it with the base teacher on texts that the
    student writes, and fills ``target_kl`` with ``meta_distill_loss`` of that target. Rewards are looked at only. A
    recipe names one base teacher; ``target`` takes the ``Mixture`` of several.

    Example:
        ``MetaDistill(strength=0.5, operator="geometric")``
    """

    name: ClassVar[str] = "meta_distill"
    paper: ClassVar[str] = "arXiv 2601.13100"
    kind: ClassVar[Literal["online"]] = "online"
    anchored: ClassVar[tuple[str, str, str]] = (
        "frozen base teacher, mixed with a copy of the last generation",
        "exact forward KL from the mixture",
        "the loss itself",
    )

    strength: float = 0.3
    """Share of the base in every generation's target; 0 is self-distillation without an anchor, which drifts."""
    operator: Operator = "arithmetic"
    """Mean of probabilities, of log-probabilities, or of probabilities over several generations."""
    history: tuple[float, ...] = (0.6, 0.4)
    """Weights of the last generations, newest first; for the operator ``history``."""
    length: int = 20
    """Rollouts of a generation; then the student is the last generation."""
    reduction: Reduction = "token"

    def __post_init__(self) -> None:
        """Refuse what is no operator."""
        if self.length < 1:
            raise ValueError(f"Expected MetaDistill length >= 1 rollouts, got {self.length}.")
        if not 0 <= self.strength <= 1:
            raise ValueError(
                f"Expected MetaDistill strength in [0, 1], got {self.strength}; 0.1 to 0.5 is usual."
            )
        for value, choices in ((self.operator, get_args(Operator)), (self.reduction, get_args(Reduction))):
            if value not in choices:
                raise ValueError(f"Unknown MetaDistill choice {value!r}; choose one of {', '.join(choices)}.")
        if min(self.history, default=-1) < 0 or abs(sum(self.history) - 1) > 1e-6:
            raise ValueError(f"Expected MetaDistill history weights >= 0 that sum to 1, got {self.history}.")

    @property
    def needs(self) -> frozenset[Need]:
        """The exact KL from the target to the student."""
        return frozenset[Need]({"target_kl"})

    @property
    def generations(self) -> int:
        """How many copies the trainer must keep."""
        return len(self.history) if self.operator == "history" else 1

    def target(
        self, *generations: Float[Tensor, " *n v"], base: Float[Tensor, " *n v"]
    ) -> Float[Tensor, " *n v"]:
        """Log-probabilities of the target from those copies, newest first, and the base."""
        return meta_target(
            *generations, base=base, strength=self.strength, operator=self.operator, history=self.history
        )

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """``KL(target || student)`` by token."""
        del gather
        loss = finite(batch, "target_kl", self.name)
        return TextLoss(loss, {"target_kl": loss.detach()})
