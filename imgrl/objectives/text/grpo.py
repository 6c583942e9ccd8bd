"""GRPO on tokens (arXiv 2402.03300), and PPO's clipped step as the special case of a given advantage.

The ratio compares the live policy with the one that wrote the tokens; the anchor enters beside it as a KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import identity, sampled_kl
from imgrl.anchor.centering import Gather
from imgrl.objectives.surrogate import clipped_surrogate
from imgrl.objectives.text.base import Need, Reduction, TextBatch, TextLoss, kept, require

__all__ = ["GRPO", "KlEstimate", "check_clip", "clip_share", "online", "policy_kl"]

KlEstimate = Literal["k2", "k3", "exact"]
"""How a KL to the anchor is trained on the policy's own tokens. ``exact`` and ``k2`` have the reverse KL's gradient,
``k3`` (TRL's and the paper's) the forward KL's; ``k1`` would have none on average and is not offered."""


def check_clip(low: float, high: float) -> None:
    """Refuse an interval that does not contain the ratio 1."""
    if not 0 <= low <= 1 or not high >= 0:
        raise ValueError(
            f"Expected 0 <= clip_low <= 1 and clip_high >= 0, got {low} and {high}; 0.2 is usual."
        )


def policy_kl(batch: TextBatch, *, estimate: KlEstimate, name: str) -> Float[Tensor, " n t"]:
    """KL(policy || anchor) by token, live, for the loss: exact over the vocabulary, or from the realised tokens."""
    if estimate == "exact":
        return kept(require(batch, "reverse_kl", name), batch.mask)
    anchor = kept(require(batch, "anchor", name), batch.mask)
    return kept(
        sampled_kl(kept(batch.log_prob, batch.mask) - anchor.detach(), estimator=estimate), batch.mask
    )


def online(batch: TextBatch, name: str) -> tuple[Tensor, Tensor]:
    """Log-ratio to the policy that wrote the tokens, and the sequence's advantage at each token; 0 off the mask."""
    old = require(batch, "old", name)
    advantage = require(batch, "advantage", name).detach()
    log_ratio = kept(batch.log_prob, batch.mask) - kept(old, batch.mask).detach()
    return log_ratio, advantage[:, None].to(log_ratio.dtype).expand_as(log_ratio)


def clip_share(
    log_ratio: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    low: float,
    high: float,
    centre: Tensor | float = 1.0,
) -> Tensor:
    """1 for tokens whose gradient the clip has removed, else 0."""
    ratio = log_ratio.detach().exp()
    above, below = (ratio > centre + high) & (advantage > 0), (ratio < centre - low) & (advantage < 0)
    return kept((above | below).to(log_ratio.dtype), mask)


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """Clipped policy gradient with group-relative advantages and an optional KL to the anchor.

    Example:
        ``GRPO(clip_high=0.28, reduction="token")`` is DAPO's clip and averaging.
    """

    name: ClassVar[str] = "grpo"
    paper: ClassVar[str] = "arXiv 2402.03300"
    kind: ClassVar[Literal["online"]] = "online"
    anchored: ClassVar[tuple[str, str, str]] = (
        "old (each rollout); frozen reference",
        "ratio; reverse KL",
        "clipped ratio; added",
    )

    clip_low: float = 0.2
    """Distance below 1 beyond which a ratio earns no gradient."""
    clip_high: float = 0.2
    """Distance above 1."""
    kl_weight: float = 0.0
    """Strength of the KL to the frozen reference; 0 needs no reference."""
    kl: KlEstimate = "k3"
    """How that KL is computed."""
    reduction: Reduction = "sequence_mean"
    """``sequence_mean`` is the paper's; ``token`` counts every token alike."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        check_clip(self.clip_low, self.clip_high)
        if not 0 <= self.kl_weight < float("inf"):
            raise ValueError(f"Expected a finite kl_weight >= 0, got {self.kl_weight}.")
        if self.kl not in ("k2", "k3", "exact"):
            raise ValueError(
                f"Unknown kl {self.kl!r}; choose 'k2', 'k3' or 'exact' (k1 has no gradient on average)."
            )

    @property
    def needs(self) -> frozenset[Need]:
        """Old log-probabilities, advantages, and the anchor where its weight is not 0."""
        anchor: Need = "reverse_kl" if self.kl == "exact" else "anchor"
        return frozenset(("old", "advantage", *((anchor,) if self.kl_weight > 0 else ())))

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Clipped surrogate plus the KL, by token."""
        del gather
        log_ratio, advantage = online(batch, self.name)
        loss = kept(
            clipped_surrogate(log_ratio, advantage, low=self.clip_low, high=self.clip_high), batch.mask
        )
        metrics = {
            "policy_loss": loss.detach(),
            "clipped": clip_share(log_ratio, advantage, batch.mask, low=self.clip_low, high=self.clip_high),
            "ratio_gap": kept((log_ratio.detach().exp() - 1).abs(), batch.mask),
        }
        if self.kl_weight > 0:
            kl = policy_kl(batch, estimate=self.kl, name=self.name)
            metrics["anchor_kl"] = kl.detach()
            loss = loss + self.kl_weight * kl
        return TextLoss(torch.where(batch.mask > 0, loss, torch.zeros_like(loss)), metrics)
