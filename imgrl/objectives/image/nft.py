"""DiffusionNFT (arXiv 2509.16117): pull towards the images that did well, push from those that did not.

Two implicit policies on either side of the old copy share the trained network; the positive one regresses an
image with probability ``q``, the negative one with ``1 - q``. To first order this is CRD's gradient; the
proximal term is the plain distance to the old copy, and the pull to the pretrained model is weak and
unguided.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import Schedule, VelocityAnchor, identity, velocity_gap
from imgrl.anchor.centering import Gather
from imgrl.anchor.schedule import PRESETS
from imgrl.flow import TimeSampler
from imgrl.flow.conventions import full_precision, mean_dims, per_sample, require_same_shape
from imgrl.objectives.image.base import Batch, LossOutput, require_noised, require_old
from imgrl.objectives.image.crd import crd_target

__all__ = ["NFT", "nft_loss"]


def nft_loss(
    v: Float[Tensor, " n *d"],
    v_old: Float[Tensor, " n *d"],
    target: Float[Tensor, " n *d"],
    sigma: Float[Tensor, " n"],
    q: Float[Tensor, " n"],
    *,
    beta: float = 1.0,
    clip: float = 5.0,
    floor: float = 1e-5,
) -> Float[Tensor, " n"]:
    """``clip / beta (q L+ + (1 - q) L-)`` per sample, in predictions of the clean image.

    ``v+ = (1 - beta) v_old + beta v`` and ``v- = (1 + beta) v_old - beta v``. ``L`` is the squared error of
    the clean prediction, ``sigma (v+- - target)``, over its mean absolute value (no gradient, at least
    ``floor``).
    """
    require_same_shape(v=v, v_old=v_old, target=target)
    v, v_old, target = full_precision(v), full_precision(v_old).detach(), full_precision(target).detach()
    level = per_sample(sigma, v)
    positive = _normalised(level * ((1 - beta) * v_old + beta * v - target), floor)
    negative = _normalised(level * ((1 + beta) * v_old - beta * v - target), floor)
    return clip / beta * (q * positive + (1 - q) * negative)


def _normalised(error: Tensor, floor: float) -> Tensor:
    return mean_dims(error**2) / mean_dims(error.detach().abs()).clamp(min=floor)


@dataclass(frozen=True, kw_only=True)
class NFT:
    """DiffusionNFT with its published setting as defaults.

    Example:
        ``NFT(anchor=VelocityAnchor())`` puts CRD's guided leash on it.
    """

    name: ClassVar[str] = "nft"
    anchored: ClassVar[tuple[str, str, str]] = (
        "frozen model; lagging old copy",
        "velocity gap; difference of velocities",
        "added; the mirrored policies",
    )
    uses_old: ClassVar[bool] = True
    shares_noise: ClassVar[bool] = False
    sampler: ClassVar[None] = None
    needs_mean: ClassVar[bool] = False

    beta: float = 1.0
    """Distance of the implicit policies from the old copy; the paper also uses 0.1."""
    advantage_clip: float = 5.0
    """Advantages beyond this many standard deviations count as this many."""
    anchor: VelocityAnchor = field(
        default_factory=lambda: VelocityAnchor(weight=1e-4, guidance=1.0, adaptive="none")
    )
    """Pull to the pretrained model, weak and unguided in the paper."""
    old: Schedule = PRESETS["slow"]
    """Decay of the old copy, which is reference and sampler at once."""
    sampling: Schedule | None = None
    """Decay of a separate sampling copy; None samples from the old copy."""
    times: TimeSampler = field(default_factory=TimeSampler)
    """Noise levels per image and update."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        if not self.beta > 0 or not self.advantage_clip > 0:
            raise ValueError(
                f"Expected NFT beta and advantage_clip > 0, got {self.beta} and {self.advantage_clip}."
            )

    def loss(self, batch: Batch, *, gather: Gather = identity) -> LossOutput:
        """NFT's two regressions plus the anchor, per sample."""
        old, noised = require_old(batch, self.name), require_noised(batch, self.name)
        q = crd_target(batch.advantage, clip=self.advantage_clip)
        policy = nft_loss(
            batch.current, old, noised.target, noised.sigma, q, beta=self.beta, clip=self.advantage_clip
        )
        leash = self.anchor.term(batch.current, batch.anchor, q=q, raw=batch.raw, gather=gather)
        metrics = {
            "policy_loss": policy.detach(),
            "anchor_loss": leash.detach(),
            "old_gap": velocity_gap(batch.current.detach(), old),
        }
        return LossOutput(policy + leash, metrics)
