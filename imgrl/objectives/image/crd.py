"""CRD, Centered Reward Distillation (arXiv 2603.14128): regress the centred gain onto the centred reward.

The optimum of ``E[reward] - beta KL(p || p_old)`` satisfies ``reward = beta log(p / p_old) + const(prompt)``.
The constant vanishes when both sides lose their mean over the images of one prompt; the log-ratio is replaced
by the denoising gain over a lagging copy. At equality with that copy the gradient is advantage-weighted flow
matching, and ``beta`` is the strength of the trust region.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from imgrl.anchor import Ramp, Schedule, VelocityAnchor, center, centered_match, denoising_gain, identity
from imgrl.anchor.centering import Gather
from imgrl.anchor.schedule import GENEVAL_OLD
from imgrl.flow import TimeSampler
from imgrl.objectives.image.base import Batch, LossOutput, require_noised, require_old

__all__ = ["CRD", "crd_loss", "crd_target"]


def crd_target(advantage: Float[Tensor, " n"], *, clip: float = 5.0) -> Float[Tensor, " n"]:
    """Map advantages to targets in [0, 1]: ``clip(A) / (2 clip) + 1/2``; 1/2 is average for the prompt."""
    if not clip > 0:
        raise ValueError(f"Expected a positive advantage clip, got {clip}.")
    return (advantage.clamp(-clip, clip) / clip / 2 + 0.5).clamp(0, 1)


def crd_loss(
    v: Float[Tensor, " n *d"],
    v_old: Float[Tensor, " n *d"],
    target: Float[Tensor, " n *d"],
    q: Float[Tensor, " n"],
    group: Int[Tensor, " n"],
    *,
    beta: float = 1.0,
    kind: Literal["mse", "bce"] = "mse",
    adaptive: bool = True,
    temperature: float | None = None,
    clip: float = 5.0,
    gather: Gather = identity,
) -> Float[Tensor, " n"]:
    """``clip / beta (beta R~ - q~)^2`` per sample, R the denoising gain, ``~`` centring inside the group.

    The factor ``clip / beta`` makes the first gradient ``advantage x flow matching`` whatever ``beta`` is.
    All three velocities belong to one noised point; every row of a group must share its noise level.
    """
    gain = denoising_gain(v, v_old, target, adaptive=adaptive)
    match = centered_match(gain, q, group, beta=beta, kind=kind, temperature=temperature, gather=gather)
    return clip / beta * match


@dataclass(frozen=True, kw_only=True)
class CRD:
    """CRD with the vetted setting as defaults.

    Example:
        ``CRD(beta=0.5, anchor=VelocityAnchor(weight=0.3))``
    """

    name: ClassVar[str] = "crd"
    anchored: ClassVar[tuple[str, str, str]] = (
        "guided frozen model; lagging old copy",
        "velocity gap; denoising gain",
        "added, by reward; the regression itself",
    )
    uses_old: ClassVar[bool] = True
    shares_noise: ClassVar[bool] = False
    sampler: ClassVar[None] = None
    needs_mean: ClassVar[bool] = False

    beta: float = 1.0
    """Trust region: larger holds the policy closer to the old copy. Aim for gain_variance / target_variance
    of 0.05 to 0.2."""
    regression: Literal["mse", "bce"] = "mse"
    """Squared error, or the logistic variant."""
    adaptive: bool = True
    """Divide denoising errors by their own size, so that all noise levels count alike."""
    temperature: float | None = None
    """None centres on the plain group mean; a number leans the baselines towards best and worst image."""
    advantage_clip: float = 5.0
    """Advantages beyond this many standard deviations count as this many."""
    anchor: VelocityAnchor = field(default_factory=VelocityAnchor)
    """The leash to the guided pretrained model."""
    old: Schedule = GENEVAL_OLD
    """Decay of the copy inside R. It must lag: at 0 the gain is 0 whenever the loss is evaluated."""
    sampling: Schedule | None = Ramp(start=75, value=0.0, slope=0.0075, end=0.5)
    """Decay of the copy that makes the images: fresh at first, smoother later. None uses the old copy."""
    times: TimeSampler = field(default_factory=TimeSampler)
    """Noise levels per image and update."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        if not self.beta > 0 or not self.advantage_clip > 0:
            raise ValueError(
                f"Expected CRD beta and advantage_clip > 0, got {self.beta} and {self.advantage_clip}."
            )
        if self.regression not in ("mse", "bce"):
            raise ValueError(f"Unknown CRD regression {self.regression!r}; choose 'mse' or 'bce'.")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(
                f"Expected CRD temperature > 0, or none for the plain mean, got {self.temperature}."
            )

    def loss(self, batch: Batch, *, gather: Gather = identity) -> LossOutput:
        """CRD's regression plus the anchor, per sample."""
        old, target = require_old(batch, self.name), require_noised(batch, self.name).target
        q = crd_target(batch.advantage, clip=self.advantage_clip)
        policy = crd_loss(
            batch.current,
            old,
            target,
            q,
            batch.group,
            beta=self.beta,
            kind=self.regression,
            adaptive=self.adaptive,
            temperature=self.temperature,
            clip=self.advantage_clip,
            gather=gather,
        )
        leash = self.anchor.term(batch.current, batch.anchor, q=q, raw=batch.raw, gather=gather)
        gain = denoising_gain(batch.current.detach(), old, target, adaptive=self.adaptive)
        metrics = {
            "policy_loss": policy.detach(),
            "anchor_loss": leash.detach(),
            "gain": gain,
            "gain_variance": (self.beta * center(gain, batch.group, gather=gather)) ** 2,
            "target_variance": center(q, batch.group, gather=gather) ** 2,
        }
        return LossOutput(policy + leash, metrics)
