"""Supervised fine-tuning, plain (SFT) and weighted by probability (DFT, arXiv 2508.05629).

DFT multiplies each token's cross-entropy by the probability the policy gives it, a constant to the gradient. What
is left is the gradient of the probability itself, which vanishes at tokens that the policy deems impossible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import identity
from imgrl.anchor.centering import Gather
from imgrl.objectives.text.base import Need, Reduction, TextBatch, TextLoss, finite, kept

__all__ = ["DFT", "SFT", "Supervised", "sft_loss", "supervised"]


def sft_loss(
    log_prob: Float[Tensor, " n t"],
    *,
    weight: Literal["none", "probability"] = "none",
    kl: Float[Tensor, " n t"] | None = None,
    kl_weight: float = 0.0,
) -> Float[Tensor, " n t"]:
    """Weighted cross-entropy plus a KL, by token, nats: ``-w log p + kl_weight kl``.

    Args:
        log_prob: live log-probability of each demonstrated token.
        weight: ``none`` is w = 1 (SFT); ``probability`` is w = p without gradient (DFT, arXiv 2508.05629,
            in its token-level form). As a value ``-p log p`` is not monotone in p; its gradient is that of ``-p``.
        kl: live KL of each position to the anchor, added with ``kl_weight`` (ASFT, arXiv 2509.23753).
        kl_weight: strength of the anchor; at 0 ``kl`` is not read.

    Raises:
        ValueError: ``weight`` is unknown, or ``kl`` is missing where its weight is not 0.
    """
    if weight not in ("none", "probability"):
        raise ValueError(f"Unknown token weight {weight!r}; choose 'none' or 'probability'.")
    loss = -log_prob if weight == "none" else -log_prob * log_prob.detach().exp()
    if kl_weight == 0:
        return loss
    if kl is None:
        raise ValueError(f"Expected the KL to the anchor for kl_weight={kl_weight}, got None; pass it.")
    return loss + kl_weight * kl


def supervised(
    batch: TextBatch,
    *,
    name: str,
    weight: Literal["none", "probability"],
    kl_weight: float = 0.0,
    kl_direction: Literal["forward", "reverse"] = "forward",
) -> TextLoss:
    """The loss on the batch's loss tokens; elsewhere values are replaced before they can spread."""
    log_prob = kept(batch.log_prob, batch.mask)
    kl = None
    if kl_weight > 0:
        kl = finite(batch, "forward_kl" if kl_direction == "forward" else "reverse_kl", name)
    loss = sft_loss(log_prob, weight=weight, kl=kl, kl_weight=kl_weight)
    metrics = {"cross_entropy": -log_prob.detach(), "probability": kept(log_prob.detach().exp(), batch.mask)}
    if kl is not None:
        metrics["anchor_kl"] = kl.detach()
    return TextLoss(loss, metrics)


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """What objectives on demonstrations share; ``name`` and ``weight`` are their own."""

    name: ClassVar[str]
    weight: ClassVar[Literal["none", "probability"]]

    reduction: Reduction = "token"
    """How tokens are averaged; ``token`` counts every loss token of the global batch alike, whatever its weight."""

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing beyond the live log-probabilities."""
        return frozenset()

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Weighted cross-entropy by token."""
        del gather
        return supervised(batch, name=self.name, weight=self.weight)


@dataclass(frozen=True, kw_only=True)
class SFT(Supervised):
    """Plain supervised fine-tuning: cross-entropy on the demonstrated tokens."""

    name: ClassVar[str] = "sft"
    paper: ClassVar[str] = "-"
    kind: ClassVar[Literal["supervised"]] = "supervised"
    anchored: ClassVar[tuple[str, str, str]] = ("none", "none", "nowhere")
    weight: ClassVar[Literal["none", "probability"]] = "none"


@dataclass(frozen=True, kw_only=True)
class DFT(Supervised):
    """Dynamic fine-tuning: cross-entropy times the token's own probability.

    It has no reference to hold it and no pull at tokens of probability 0, which it never learns; see ASFT.
    """

    name: ClassVar[str] = "dft"
    paper: ClassVar[str] = "arXiv 2508.05629"
    kind: ClassVar[Literal["supervised"]] = "supervised"
    anchored: ClassVar[tuple[str, str, str]] = ("the policy itself", "probability", "weight of each token")
    weight: ClassVar[Literal["none", "probability"]] = "probability"
