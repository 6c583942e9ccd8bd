"""SPINE (arXiv 2511.17938): label-free policy gradients on forking tokens, whose entropy stays in a band; and TTRL.

Forking tokens are those of high entropy. All other tokens get no gradient from any term. SPINE's text was not available
to us: the selections follow a reader's notes (quantiles) and an independent port (Otsu), and the weights of band and KL
are ours. TTRL (arXiv 2504.16084) is the same with all tokens and no band: GRPO on voted rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import identity
from imgrl.anchor.centering import Gather
from imgrl.objectives.surrogate import clipped_surrogate
from imgrl.objectives.text.base import Need, Reduction, TextBatch, TextLoss, finite, kept, require
from imgrl.objectives.text.clipped import check_clip, check_kl, check_passes, clip_share, online
from imgrl.objectives.text.forking import Limits, entropy_band, fork_mask, limits_of

__all__ = ["SPINE", "TTRL"]


@dataclass(frozen=True, kw_only=True)
class TTRL:
    """GRPO on voted rewards with an exact KL to the policy before adaptation."""

    name: ClassVar[str] = "ttrl"
    paper: ClassVar[str] = "arXiv 2504.16084"
    kind: ClassVar[Literal["online"]] = "online"
    anchored: ClassVar[tuple[str, str, str]] = ("frozen, before adaptation", "reverse KL, exact", "added")
    population: ClassVar[bool] = True
    """Advantages are divided by the deviation of the group itself, as the paper has it; TRL takes a sample's."""

    clip: float = 0.2
    """Distance from 1 beyond which a ratio earns no gradient."""
    kl_weight: float = 1e-3
    """Strength of the KL; 0 needs no anchor."""
    reduction: Reduction = "token"
    """How tokens are averaged."""
    passes: int = 1
    """Updates on each batch of completions; the clip acts from the second one on."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        check_clip(min(self.clip, 1.0), self.clip)
        check_kl(self.kl_weight, "exact", False, self.reduction)
        check_passes(self.passes)

    @property
    def needs(self) -> frozenset[Need]:
        """Old log-probabilities, advantages, and the KL where its weight is not 0."""
        return frozenset(("old", "advantage", *(("reverse_kl",) if self.kl_weight > 0 else ())))

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Clipped surrogate plus the KL, by token."""
        del gather
        chosen = (batch.mask > 0).to(batch.log_prob.dtype)
        return _policy(batch, chosen, clip=self.clip, kl_weight=self.kl_weight, name=self.name)


@dataclass(frozen=True, kw_only=True)
class SPINE(TTRL):
    """TTRL on forking tokens, with their entropy held in a band."""

    name: ClassVar[str] = "spine"
    paper: ClassVar[str] = "arXiv 2511.17938"
    anchored: ClassVar[tuple[str, str, str]] = (
        "frozen, before adaptation",
        "reverse KL, exact; entropy band",
        "added, on forking tokens only",
    )

    selection: Literal["otsu", "quantile", "all"] = "otsu"
    """Threshold of each response's entropies between two classes, or its most uncertain fifth."""
    band_low: float = 5e-3
    """Strength of the band's lower side."""
    band_high: float = 5e-3
    """Strength of its upper side. The upper limit is the median of the chosen tokens, so half of them are always pulled
    down: with equal strengths the band lowers entropy on the whole."""
    frozen_limits: tuple[float, float] | None = None
    """A fixed band in nats instead of one that follows the policy."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        super().__post_init__()
        if self.selection not in ("otsu", "quantile", "all"):
            raise ValueError(f"Unknown selection {self.selection!r}; choose 'otsu', 'quantile' or 'all'.")
        if not 0 <= self.band_low < float("inf") or not 0 <= self.band_high < float("inf"):
            raise ValueError(f"Expected band strengths >= 0, got {self.band_low} and {self.band_high}.")
        if self.frozen_limits is not None and not 0 <= self.frozen_limits[0] <= self.frozen_limits[1]:
            raise ValueError(f"Expected frozen_limits as 0 <= low <= high, got {self.frozen_limits}.")

    @property
    def needs(self) -> frozenset[Need]:
        """What TTRL needs, and the entropies."""
        entropy: Need = "entropy"
        return frozenset((*super().needs, entropy))

    def chosen(self, entropy: Float[Tensor, " n t"], mask: Float[Tensor, " n t"]) -> Float[Tensor, " n t"]:
        """1 on forking tokens, without gradient; each response by itself, so no other one matters."""
        return fork_mask(entropy, mask, selection=self.selection)

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Clipped surrogate, entropy band and KL on forking tokens, by token.

        A part of a batch needs ``tokens_per_chosen`` of the whole: the KL is a mean over all its chosen tokens, and the
        parts then add up to its loss however it was cut.
        """
        del gather
        entropy = kept(require(batch, "entropy", self.name), batch.mask)
        chosen = self.chosen(entropy, batch.mask)
        plain = _policy(batch, chosen, clip=self.clip, kl_weight=self.kl_weight, name=self.name)
        limits = (
            limits_of(entropy, chosen, selection=self.selection)
            if self.frozen_limits is None
            else Limits(*(torch.full_like(entropy[:, 0], x) for x in self.frozen_limits))
        )
        band = entropy_band(entropy, chosen, limits, low=self.band_low, high=self.band_high)
        return TextLoss(
            plain.loss + band,
            plain.metrics
            | {"band": band.detach(), "chosen": chosen, "entropy": entropy.detach()[chosen > 0]},
        )


def _policy(batch: TextBatch, chosen: Tensor, *, clip: float, kl_weight: float, name: str) -> TextLoss:
    """Surrogate and KL on the chosen tokens; the KL's mean is over those, the surrogate's over all loss tokens."""
    log_ratio, advantage = online(batch, name)
    loss = chosen * clipped_surrogate(log_ratio, advantage, low=clip, high=clip)
    metrics = {
        "policy_loss": loss.detach(),
        "clipped": clip_share(log_ratio, advantage, batch.mask, low=clip, high=clip),
    }
    if kl_weight > 0:
        kl = chosen * finite(batch, "reverse_kl", name)
        metrics["anchor_kl"] = kl.detach()[chosen > 0]  # its mean is over the chosen tokens, as the loss's is
        ratio = batch.tokens_per_chosen
        if ratio is None:
            ratio = (batch.mask > 0).sum() / chosen.sum().clamp(min=1)
        loss = loss + kl_weight * kl * ratio
    return TextLoss(loss, metrics)
