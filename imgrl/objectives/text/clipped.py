"""What every clipped policy gradient on tokens shares: ratio, clip, and a KL to the anchor beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import sampled_kl
from imgrl.objectives.surrogate import clipped_surrogate
from imgrl.objectives.text.base import Need, Reduction, TextBatch, TextLoss, finite, kept, require

__all__ = [
    "Clipped",
    "KlEstimate",
    "check_clip",
    "check_kl",
    "check_passes",
    "clip_share",
    "online",
    "policy_kl",
]

KlEstimate = Literal["k1", "k2", "k3", "exact"]
"""How a KL to the anchor is trained on the policy's own tokens. ``exact`` and ``k2`` have the reverse KL's gradient,
``k3`` (TRL's and the paper's) the forward KL's; ``k1`` has none on average unless weighted by the ratio."""


def check_clip(low: float, high: float) -> None:
    """Refuse an interval that does not contain the ratio 1."""
    if not 0 <= low <= 1 or not high >= 0:
        raise ValueError(
            f"Expected 0 <= clip_low <= 1 and clip_high >= 0, got {low} and {high}; 0.2 is usual."
        )


def check_kl(weight: float, estimate: str, weighted: bool, reduction: str) -> None:
    """Refuse an anchor that pushes or says nothing, and names that do not exist."""
    if not 0 <= weight < float("inf"):
        raise ValueError(f"Expected a finite kl_weight >= 0, got {weight}; 0 needs no reference.")
    for field, value, kind in (("kl", estimate, KlEstimate), ("reduction", reduction, Reduction)):
        if value not in get_args(kind):
            raise ValueError(f"Unknown {field} {value!r}; choose one of {', '.join(get_args(kind))}.")
    if estimate == "k1" and not weighted:
        raise ValueError("Expected kl_weighted=True for kl='k1', whose gradient is else zero on average.")
    if estimate == "exact" and weighted:
        raise ValueError("Expected kl_weighted=False for kl='exact': there is no sampling to correct.")


def check_passes(passes: int) -> None:
    """Refuse a batch that is never learnt from."""
    if passes < 1:
        raise ValueError(f"Expected passes >= 1, got {passes}; 1 is one update a batch.")


def policy_kl(
    batch: TextBatch,
    *,
    estimate: KlEstimate,
    name: str,
    weighted: bool = False,
    anchor: Literal["anchor", "teacher"] = "anchor",
) -> Float[Tensor, " n t"]:
    """KL(policy || anchor) by token, live, for the loss: exact over the vocabulary, or from the realised tokens.

    ``anchor`` names the field with the realised tokens' log-probabilities under the other model.

    ``weighted`` multiplies by the ratio to the policy that wrote the tokens. With its gradient, k1 and k3 then have the
    reverse KL's value and gradient on tokens of any policy (k3: TRL's ``use_bias_correction_kl``, DeepSeek-V3.2, arXiv
    2512.02556); k2, whose value is biased, takes the ratio as a constant.
    """
    if estimate == "exact":
        return finite(batch, "reverse_kl", name)
    live = kept(batch.log_prob, batch.mask)
    kl = sampled_kl(live - finite(batch, anchor, name).detach(), estimator=estimate)
    if weighted:
        ratio = (live - kept(require(batch, "old", name), batch.mask).detach()).exp()
        kl = kl * (ratio.detach() if estimate == "k2" else ratio)
    return kept(kl, batch.mask)


def online(batch: TextBatch, name: str) -> tuple[Float[Tensor, " n t"], Float[Tensor, " n t"]]:
    """Log-ratio to the policy that wrote the tokens, and the sequence's advantage at each token; 0 off the mask."""
    old = require(batch, "old", name)
    advantage = require(batch, "advantage", name).detach()
    log_ratio = kept(batch.log_prob, batch.mask) - kept(old, batch.mask).detach()
    return log_ratio, advantage[:, None].to(log_ratio.dtype).expand_as(log_ratio)


def clip_share(
    log_ratio: Float[Tensor, " n t"],
    advantage: Float[Tensor, " n t"],
    mask: Float[Tensor, " n t"],
    *,
    low: float,
    high: float,
    centre: Float[Tensor, " n t"] | float = 1.0,
) -> Float[Tensor, " n t"]:
    """1 for tokens whose gradient the clip has removed, else 0."""
    ratio = log_ratio.detach().exp()
    above, below = (ratio > centre + high) & (advantage > 0), (ratio < centre - low) & (advantage < 0)
    return kept((above | below).to(log_ratio.dtype), mask)


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """Settings and anchor of a clipped objective; ``name`` is its own."""

    name: ClassVar[str]

    clip_low: float = 0.2
    """Distance below 1 beyond which a ratio earns no gradient."""
    clip_high: float = 0.2
    """Distance above 1."""
    kl_weight: float = 0.0
    """Strength of a KL to the base; 0 needs none."""
    kl: KlEstimate = "k3"
    """How that KL is computed."""
    kl_weighted: bool = False
    """Whether a sampled KL is weighted by the ratio to the old policy, for tokens that another policy wrote."""
    reduction: Reduction = "sequence_mean"
    """``sequence_mean`` is the papers'; ``token`` counts every token alike."""
    passes: int = 1
    """Updates on each batch of completions; the clip acts from the second one on."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        check_passes(self.passes)
        check_clip(self.clip_low, self.clip_high)
        check_kl(self.kl_weight, self.kl, self.kl_weighted, self.reduction)

    @property
    def needs(self) -> frozenset[Need]:
        """Old log-probabilities, advantages, and the anchor where its weight is not 0."""
        anchor: Need = "reverse_kl" if self.kl == "exact" else "anchor"
        return frozenset(("old", "advantage", *((anchor,) if self.kl_weight > 0 else ())))

    def surrogate(
        self, log_ratio: Float[Tensor, " n t"], advantage: Float[Tensor, " n t"], mask: Float[Tensor, " n t"]
    ) -> tuple[Float[Tensor, " n t"], dict[str, Tensor]]:
        """The clipped loss by token, and what every such objective reports of it."""
        loss = kept(clipped_surrogate(log_ratio, advantage, low=self.clip_low, high=self.clip_high), mask)
        return loss, {"policy_loss": loss.detach(), "clipped": self.removed(log_ratio, advantage, mask)}

    def removed(
        self, log_ratio: Float[Tensor, " n t"], advantage: Float[Tensor, " n t"], mask: Float[Tensor, " n t"]
    ) -> Float[Tensor, " n t"]:
        """1 for tokens whose gradient this clip has removed, else 0."""
        return clip_share(log_ratio, advantage, mask, low=self.clip_low, high=self.clip_high)

    def with_kl(self, loss: Float[Tensor, " n t"], metrics: dict[str, Tensor], batch: TextBatch) -> TextLoss:
        """Add the KL to the anchor, if it has a weight."""
        if self.kl_weight > 0:
            kl = policy_kl(batch, estimate=self.kl, name=self.name, weighted=self.kl_weighted)
            metrics["anchor_kl"] = kl.detach()
            loss = loss + self.kl_weight * kl
        return TextLoss(loss, metrics)
