"""DGPO, Direct Group Preference Optimisation (arXiv 2510.08425): the better part of a group against the worse.

A Bradley-Terry likelihood of whole groups: images are split by the sign of their advantage, the log-ratio to
a reference is the difference of denoising errors, and weights |A| make the partition function cancel. Its
gradient is advantage-weighted flow matching, times a group weight that falls as the policy gets the group
right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imgrl.anchor import Ramp, Schedule, VelocityAnchor, group_mean, identity
from imgrl.anchor.centering import Gather
from imgrl.flow import TimeSampler
from imgrl.flow.conventions import full_precision, mean_dims, require_same_shape
from imgrl.objectives.image.base import Batch, LossOutput, require_noised, require_old
from imgrl.objectives.image.crd import crd_target

__all__ = ["DGPO", "dgpo_loss"]


def dgpo_loss(
    v: Float[Tensor, " n *d"],
    v_ref: Float[Tensor, " n *d"],
    target: Float[Tensor, " n *d"],
    advantage: Float[Tensor, " n"],
    group: Int[Tensor, " n"],
    *,
    beta: float = 2000.0,
    ratio_clip: float | None = None,
    gather: Gather = identity,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """``W A mean_d (v - target)^2`` per sample, and ``W``, the probability of getting the group wrong.

    ``W = sigmoid(beta mean_group[A (e - e_ref)])`` with ``e`` the denoising error, without gradient: 1/2 where
    the policy is the reference, towards 0 where it already denoises the good images better and the bad ones
    worse. All images of a group must share noise level and noise. With ``ratio_clip`` a sample whose ratio
    ``exp(e_ref - e)`` has already gone that far in its direction keeps its value and loses its gradient.
    """
    require_same_shape(v=v, v_ref=v_ref, target=target)
    target = full_precision(target).detach()
    error = mean_dims((full_precision(v) - target) ** 2)
    reference = mean_dims((full_precision(v_ref).detach() - target) ** 2)
    change = error.detach() - reference
    weight = torch.sigmoid(beta * group_mean(advantage * change, group, gather=gather))
    if ratio_clip is not None:
        ratio = (-change).exp()
        gone = torch.where(advantage > 0, ratio > 1 + ratio_clip, ratio < 1 - ratio_clip)
        error = torch.where(gone, error.detach(), error)
    return weight * advantage * error, weight


@dataclass(frozen=True, kw_only=True)
class DGPO:
    """DGPO against a lagging reference, its published setting as defaults.

    The lagging copy is reference and sampler at once.

    Example:
        ``DGPO(beta=100.0, old=Constant(value=1.0), sampling=Constant())`` keeps the first weights as the reference and
        samples from the newest; ``ratio_clip`` then counts from the reference as well, not from the sampler.
    """

    name: ClassVar[str] = "dgpo"
    anchored: ClassVar[tuple[str, str, str]] = (
        "guided frozen model; lagging reference",
        "velocity gap; difference of denoising errors",
        "added; group preference",
    )
    uses_old: ClassVar[bool] = True
    shares_noise: ClassVar[bool] = True
    sampler: ClassVar[None] = None
    needs_mean: ClassVar[bool] = False

    beta: float = 2000.0
    """Sharpness of the group preference: 2000 to 5000 with a lagging reference, 10 to 100 with a frozen one."""
    ratio_clip: float | None = 0.01
    """Distance of a sample's ratio from 1 beyond which it gets no gradient; None clips nothing."""
    advantage_clip: float = 5.0
    """Advantages beyond this many standard deviations count as this many."""
    anchor: VelocityAnchor = field(
        default_factory=lambda: VelocityAnchor(weight=1e-3, guidance=4.5, adaptive="none")
    )
    """Pull to the pretrained model, guided as in the paper's guidance-free mode."""
    old: Schedule = Ramp(slope=0.001, end=0.3)
    """Decay of the reference."""
    sampling: Schedule | None = None
    """Decay of a separate sampling copy; None samples from the reference."""
    times: TimeSampler = field(default_factory=lambda: TimeSampler(high=0.6))
    """Noise levels per image and update: the noisy part."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        if not self.beta > 0 or not self.advantage_clip > 0:
            raise ValueError(
                f"Expected DGPO beta and advantage_clip > 0, got {self.beta} and {self.advantage_clip}."
            )
        if self.ratio_clip is not None and not self.ratio_clip > 0:
            raise ValueError(f"Expected DGPO ratio_clip > 0, or none to clip nothing, got {self.ratio_clip}.")

    def loss(self, batch: Batch, *, gather: Gather = identity) -> LossOutput:
        """The group preference plus the anchor, per sample."""
        old = require_old(batch, self.name)
        advantage = batch.advantage.clamp(-self.advantage_clip, self.advantage_clip)
        policy, weight = dgpo_loss(
            batch.current,
            old,
            require_noised(batch, self.name).target,
            advantage,
            batch.group,
            beta=self.beta,
            ratio_clip=self.ratio_clip,
            gather=gather,
        )
        q = crd_target(batch.advantage, clip=self.advantage_clip)
        leash = self.anchor.term(batch.current, batch.anchor, q=q, raw=batch.raw, gather=gather)
        metrics = {"policy_loss": policy.detach(), "anchor_loss": leash.detach(), "group_weight": weight}
        return LossOutput(policy + leash, metrics)
