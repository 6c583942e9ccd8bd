"""The leash of a flow policy: squared velocity distance to the frozen, guided model, weighted by reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.anchor.centering import Gather, identity
from imgrl.anchor.divergence import velocity_gap
from imgrl.anchor.schedule import adaptive_weight

__all__ = ["VelocityAnchor"]


@dataclass(frozen=True, kw_only=True)
class VelocityAnchor:
    """Strength and target of the pull towards the pretrained model (CRD's KL term).

    Example:
        ``VelocityAnchor(weight=0.3)`` for a tighter leash; ``VelocityAnchor(weight=0)`` for none.
    """

    weight: float = 0.1
    """Strength at full reward; 0 removes the term and its forward pass. A leash: raise to 0.3-1 on reward
    hacking."""
    guidance: float = 4.5
    """Guidance scale of the frozen model; 1 is its conditional branch. Guided targets distil guidance into
    the policy."""
    adaptive: Literal["raw", "advantage", "batch_mean_raw", "none"] = "raw"
    """What the strength rises with: each image's raw reward (must lie in [0, 1]), its clipped advantage, the
    batch's mean raw reward, or nothing. Advantages average out in every batch, so only raw rewards tighten
    the leash over time."""
    floor: float = 1e-4
    """Strength at reward 0."""

    def __post_init__(self) -> None:
        """Refuse strengths that would reverse the leash."""
        if self.adaptive not in ("raw", "advantage", "batch_mean_raw", "none"):
            raise ValueError(
                f"Unknown anchor mode {self.adaptive!r}; "
                "choose 'raw', 'advantage', 'batch_mean_raw' or 'none'."
            )
        if not self.weight >= 0 or not self.floor >= 0:
            raise ValueError(f"Expected anchor weight and floor >= 0, got {self.weight} and {self.floor}.")
        if not self.guidance >= 1:
            raise ValueError(f"Expected anchor guidance >= 1 (1 is unguided), got {self.guidance}.")
        if self.active and self.adaptive != "none":
            adaptive_weight(torch.zeros(1), value=self.weight, floor=self.floor)

    @property
    def active(self) -> bool:
        """Whether the term exists; if not, no forward pass of the frozen model is needed."""
        return self.weight > 0

    @property
    def needs_unit_rewards(self) -> bool:
        """Whether the strength follows raw rewards, which must then lie in [0, 1]."""
        return self.active and self.adaptive in ("raw", "batch_mean_raw")

    def weights(
        self, q: Float[Tensor, " n"], raw: Float[Tensor, " n"], *, gather: Gather = identity
    ) -> Float[Tensor, " n"]:
        """Strength for each sample from its target ``q`` and raw reward, without gradient."""
        if not self.active or self.adaptive == "none":
            return torch.full_like(q, self.weight)
        if self.adaptive == "advantage":
            rho = q.detach()
        else:
            rho = raw.detach().to(q)
            if not bool(((rho >= -1e-6) & (rho <= 1 + 1e-6)).all()):
                raise ValueError(
                    f"Expected raw rewards in [0, 1] for anchor.adaptive={self.adaptive!r}, got "
                    f"{rho.min().item():.4g} to {rho.max().item():.4g}; "
                    "rescale the reward or use 'advantage' or 'none'."
                )
            if self.adaptive == "batch_mean_raw":
                rho = gather(rho).mean().expand_as(rho)
        return adaptive_weight(rho, value=self.weight, floor=self.floor)

    def term(
        self,
        v: Float[Tensor, " n *d"],
        v_anchor: Float[Tensor, " n *d"] | None,
        *,
        q: Float[Tensor, " n"],
        raw: Float[Tensor, " n"],
        gather: Gather = identity,
    ) -> Float[Tensor, " n"]:
        """Weighted velocity gap per sample; zeros, without looking at ``v_anchor``, when the weight is 0."""
        if not self.active:
            return torch.zeros_like(q)
        if v_anchor is None:
            raise ValueError(
                f"Expected the frozen model's velocity for anchor weight {self.weight}, got None."
            )
        return self.weights(q, raw, gather=gather) * velocity_gap(v, v_anchor)
