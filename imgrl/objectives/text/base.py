"""What every language objective receives, returns and declares.

Shapes: ``n`` sequences, ``t`` response positions, ``v`` vocabulary. Everything by position is aligned to the
*predicted* token: ``log_prob[i, j]`` is the log-probability of response token ``j`` given what comes before, and
``mask[i, j]`` says whether that token carries loss. The shift between logits and tokens happens once, in the
trainer, and never here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imgrl.anchor import identity
from imgrl.anchor.centering import Gather
from imgrl.flow.conventions import require_same_shape

__all__ = [
    "BASE_NEEDS",
    "Need",
    "Reduction",
    "TextBatch",
    "TextLoss",
    "TextObjective",
    "finite",
    "kept",
    "needs_at",
    "passes_of",
    "reduce",
    "require",
]

Need = Literal[
    "old",
    "current",
    "anchor",
    "teacher",
    "previous_kl",
    "advantage",
    "entropy",
    "forward_kl",
    "reverse_kl",
    "target_kl",
]
"""Fields of a batch that cost something to fill; an objective names those it reads."""

BASE_NEEDS: frozenset[Need] = frozenset({"anchor", "forward_kl", "reverse_kl"})
"""Those of them that a base model is kept for."""

Reduction = Literal["token", "sequence_mean", "sequence_sum"]
"""Mean over all loss tokens of the global batch; mean over sequences of the mean, or the sum, over tokens."""


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """Sequences with what the live policy and the copies left behind say of them. Only live fields have a gradient."""

    log_prob: Float[Tensor, " n t"]
    """Live log-probability of each realised token."""
    mask: Float[Tensor, " n t"]
    """1 where a token carries loss, else 0."""
    old: Float[Tensor, " n t"] | None = None
    """Log-probability under the policy that produced the data, stored at generation."""
    current: Float[Tensor, " n t"] | None = None
    """Log-probability under the policy at the start of this step (differs from ``old`` for replayed data)."""
    anchor: Float[Tensor, " n t"] | None = None
    """Log-probability under the anchor (frozen base, reference, moving copy)."""
    teacher: Float[Tensor, " n t"] | None = None
    """Log-probability under a teacher with the same tokenizer."""
    previous_kl: Float[Tensor, " n t"] | None = None
    """Exact reverse KL from the live policy to the policy before the last update block, live, nats."""
    entropy: Float[Tensor, " n t"] | None = None
    """Exact entropy of the live policy, live, nats."""
    forward_kl: Float[Tensor, " n t"] | None = None
    """Exact KL(anchor || live), live, nats."""
    reverse_kl: Float[Tensor, " n t"] | None = None
    """Exact KL(live || anchor), live, nats."""
    target_kl: Float[Tensor, " n t"] | None = None
    """Exact KL(target || live), live, nats, of a distribution that the objective makes of several models'."""
    advantage: Float[Tensor, " n"] | None = None
    """Reward relative to its group."""
    reward: Float[Tensor, " n"] | None = None
    """Raw reward, weighted sum of those that apply; NaN where a sequence could not be judged."""
    group: Int[Tensor, " n"] | None = None
    """Sequences with the same number answer one prompt."""
    tokens_per_chosen: Float[Tensor, ""] | float | None = None
    """Loss tokens for each chosen one (SPINE's forking tokens) over the global batch, of which this may be a part; None
    where this batch is the whole."""
    step: int = 0
    """Rollouts (without rollouts: optimiser steps) since the start of the run, for schedules."""

    def __post_init__(self) -> None:
        """Refuse rows that do not belong together, and sequences without a token to learn from."""
        by_token = {"log_prob": self.log_prob, "mask": self.mask}
        for name in (
            "old",
            "current",
            "anchor",
            "teacher",
            "previous_kl",
            "entropy",
            "forward_kl",
            "reverse_kl",
            "target_kl",
        ):
            if (value := getattr(self, name)) is not None:
                by_token[name] = value
        require_same_shape(**by_token)
        by_row = {
            name: value
            for name in ("advantage", "reward", "group")
            if (value := getattr(self, name)) is not None
        }
        require_same_shape(**by_row, rows=self.log_prob[:, 0])
        rows = [row for row, own in enumerate(self.mask > 0) if not bool(own.any())]
        if rows:
            raise ValueError(
                f"Expected a loss token in every sequence, got none in rows {rows}; drop those rows."
            )


class TextLoss(NamedTuple):
    """A loss not yet averaged, with its parts for the log."""

    loss: Tensor
    """[n, t] by token (zero outside the mask), reduced as the objective's ``reduction`` says; or [n] by sequence,
    whose mean is the loss."""
    metrics: dict[str, Tensor]
    """Name -> [n, t], whose mean is over loss tokens, or one dimension of what the name speaks of (sequences, chosen
    tokens), whose mean is plain; detached."""


@runtime_checkable
class TextObjective(Protocol):
    """A language objective: a loss and the declarations the trainer acts on."""

    name: ClassVar[str]
    paper: ClassVar[str]
    """The source, such as ``arXiv 2509.23753``."""
    kind: ClassVar[Literal["supervised", "preference", "online"]]
    """The data it learns from: demonstrations, pairs, or own rollouts."""
    anchored: ClassVar[tuple[str, str, str]]
    """Anchor, discrepancy and where it enters: a row of the README's table."""
    reduction: Reduction

    @property
    def needs(self) -> frozenset[Need]:
        """Fields of the batch it reads, beyond ``log_prob`` and ``mask``."""
        ...

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """The loss by token or by sequence; no mean is taken."""
        ...


def passes_of(objective: object) -> int:
    """Updates on each batch of rollouts; 1 unless the objective has ``passes``."""
    return getattr(objective, "passes", 1)


def needs_at(objective: TextObjective, step: int) -> frozenset[Need]:
    """What an objective reads at a step: its ``needs``, less what has no weight there."""
    narrower = getattr(objective, "needs_at", None)
    return objective.needs if narrower is None else narrower(step)


def require(batch: TextBatch, field: Need, name: str) -> Tensor:
    """A field of the batch; ValueError in one sentence if it was not filled."""
    value = getattr(batch, field)
    if value is None:
        raise ValueError(f"Expected TextBatch.{field} for objective {name!r}, got None; list it in `needs`.")
    return value


def kept(x: Float[Tensor, " n t"], mask: Float[Tensor, " n t"]) -> Float[Tensor, " n t"]:
    """Zeros outside the mask, before anything found there (padding, NaN) can spread through values or gradients."""
    return torch.where(mask > 0, x, torch.zeros_like(x))


def finite(batch: TextBatch, field: Need, name: str) -> Float[Tensor, " n t"]:
    """A field in which another model has its say, 0 off the mask.

    Raises:
        ValueError: in one sentence, if it was not filled, or holds NaN or infinity where a token carries loss.
    """
    value = kept(require(batch, field, name), batch.mask)
    broken = (~value.isfinite()).any(-1)
    if bool(broken.any()):
        rows = [row for row, bad in enumerate(broken) if bool(bad)]
        raise ValueError(
            f"Expected finite values in TextBatch.{field} for objective {name!r}, got NaN or infinity in rows {rows}; "
            "check that both models share a tokenizer and run in enough precision."
        )
    return value


def reduce(
    x: Float[Tensor, " n t"],
    mask: Float[Tensor, " n t"],
    *,
    how: Reduction,
    denominator: Float[Tensor, ""] | float | None = None,
) -> Float[Tensor, ""]:
    """The scalar of a loss by token.

    Args:
        x: values by token; those outside the mask have no influence, not even as NaN.
        mask: 1 where a token counts.
        how: ``token`` sums and divides by the number of tokens; ``sequence_mean`` averages each sequence and then
            over sequences; ``sequence_sum`` sums each sequence and then averages.
        denominator: the global batch's number of tokens (``token``) or sequences (the others). Micro-batches that
            share it add up to the loss of the whole batch; None takes this batch's own.
    """
    require_same_shape(x=x, mask=mask)
    kept = torch.where(mask > 0, x * mask, torch.zeros_like(x))
    if how == "token":
        return kept.sum() / (mask.sum() if denominator is None else denominator)
    rows = len(x) if denominator is None else denominator
    if how == "sequence_mean":
        return (kept.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / rows
    if how == "sequence_sum":
        return kept.sum() / rows
    raise ValueError(f"Unknown reduction {how!r}; choose 'token', 'sequence_mean' or 'sequence_sum'.")
