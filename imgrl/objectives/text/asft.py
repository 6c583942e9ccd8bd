"""Supervised fine-tuning on a leash: ASFT (arXiv 2509.23753) and its baseline SFT + KL.

ASFT adds to DFT the exact KL from the frozen base model. It holds the policy near the base, and it frees tokens
that DFT never learns, those of probability 0, wherever the base gives them any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from imgrl.anchor import identity
from imgrl.anchor.centering import Gather
from imgrl.objectives.text.base import Need, TextBatch, TextLoss
from imgrl.objectives.text.sft import Supervised, supervised

__all__ = ["ASFT", "SFTKL"]


@dataclass(frozen=True, kw_only=True)
class _Anchored(Supervised):
    """What ASFT and SFT + KL have in common."""

    kl_weight: float = 0.05
    """Strength of the anchor; 0 removes the term and its forward pass."""
    kl_direction: Literal["forward", "reverse"] = "forward"
    """``forward`` is KL(base || policy), ``reverse`` KL(policy || base)."""

    def __post_init__(self) -> None:
        """Refuse a pull away from the anchor and a direction that does not exist."""
        if not 0 <= self.kl_weight < float("inf"):
            raise ValueError(f"Expected a finite kl_weight >= 0, got {self.kl_weight}; 0.03 to 0.1 is usual.")
        if self.kl_direction not in ("forward", "reverse"):
            raise ValueError(f"Unknown kl_direction {self.kl_direction!r}; choose 'forward' or 'reverse'.")

    @property
    def needs(self) -> frozenset[Need]:
        """The exact KL in the chosen direction, unless its weight is 0."""
        kl: Need = "forward_kl" if self.kl_direction == "forward" else "reverse_kl"
        return frozenset({kl} if self.kl_weight > 0 else ())

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Weighted cross-entropy plus the anchor, by token."""
        del gather
        return supervised(
            batch,
            name=self.name,
            weight=self.weight,
            kl_weight=self.kl_weight,
            kl_direction=self.kl_direction,
        )


@dataclass(frozen=True, kw_only=True)
class ASFT(_Anchored):
    """Anchored supervised fine-tuning: DFT plus the forward KL from the frozen base model.

    The gradient of a token's logits is that of cross-entropy, ``w + kl_weight`` times, towards the smoothed label
    ``(w onehot + kl_weight base) / (w + kl_weight)``, w the token's probability. The paper trains with weight 0.05 and
    advises 0.03 in half precision; its ablation prefers the forward direction.
    """

    name: ClassVar[str] = "asft"
    paper: ClassVar[str] = "arXiv 2509.23753"
    kind: ClassVar[Literal["supervised"]] = "supervised"
    anchored: ClassVar[tuple[str, str, str]] = ("frozen base", "forward KL, exact", "added to weighted SFT")
    weight: ClassVar[Literal["none", "probability"]] = "probability"


@dataclass(frozen=True, kw_only=True)
class SFTKL(_Anchored):
    """Cross-entropy plus the KL to the frozen base model: the baseline that tells ASFT's two parts apart."""

    name: ClassVar[str] = "sft_kl"
    paper: ClassVar[str] = "arXiv 2509.23753"
    kind: ClassVar[Literal["supervised"]] = "supervised"
    anchored: ClassVar[tuple[str, str, str]] = ("frozen base", "forward KL, exact", "added to SFT")
    weight: ClassVar[Literal["none", "probability"]] = "none"
