"""AWM, Advantage Weighted Matching (arXiv 2509.25050): the pretraining loss, weighted by advantage.

Flow matching of the model's own images takes the place of a log-probability. Matching clean images has less
variance than matching the noisy next states of a trajectory, which is what policy gradients on sampling steps
do. A ratio to the policy that made the images is clipped as in PPO, and a lagging copy holds the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import Ramp, Schedule, VelocityAnchor, identity, velocity_gap
from imgrl.anchor.centering import Gather
from imgrl.flow import TimeSampler
from imgrl.flow.conventions import full_precision, mean_dims, require_same_shape
from imgrl.objectives.image.base import Batch, LossOutput, require_noised, require_old
from imgrl.objectives.surrogate import clipped_surrogate

__all__ = ["AWM", "matching_log_prob"]

Weighting = Literal["uniform", "sigma", "sigma_squared", "huber", "ghuber"]


def matching_log_prob(
    v: Float[Tensor, " n *d"],
    target: Float[Tensor, " n *d"],
    sigma: Float[Tensor, " n"],
    *,
    weighting: Weighting = "ghuber",
    power: float = 0.25,
    floor: float = 1e-10,
) -> Float[Tensor, " n"]:
    """AWM's stand-in for ``log p(image)``: minus a weighted denoising error ``E = mean_d (v - target)^2``.

    ``uniform`` E, ``sigma`` and ``sigma_squared`` that times the noise level, ``huber``
    ``sigma (sqrt(E + floor) - sqrt(floor))``, ``ghuber`` the same with any ``power`` and over it. float32 or
    better.
    """
    require_same_shape(v=v, target=target)
    error = mean_dims((full_precision(v) - full_precision(target).detach()) ** 2)
    level = sigma.to(error)
    if weighting == "uniform":
        return -error
    if weighting == "sigma":
        return -level * error
    if weighting == "sigma_squared":
        return -(level**2) * error
    if weighting == "huber":
        return -level * ((error + floor) ** 0.5 - floor**0.5)
    if weighting == "ghuber":
        return -level / power * ((error + floor) ** power - floor**power)
    raise ValueError(
        f"Unknown AWM weighting {weighting!r}; choose 'uniform', 'sigma', 'sigma_squared', 'huber' or 'ghuber'."
    )


@dataclass(frozen=True, kw_only=True)
class AWM:
    """AWM with its published setting as defaults.

    The lagging copy makes the images, is the ratio's denominator and the target of the trailing pull.

    Example:
        ``AWM(weighting="uniform")``
    """

    name: ClassVar[str] = "awm"
    anchored: ClassVar[tuple[str, str, str]] = (
        "frozen model; lagging old copy",
        "velocity gap; matching log-ratio",
        "added; clipped ratio",
    )
    uses_old: ClassVar[bool] = True
    shares_noise: ClassVar[bool] = False
    sampler: ClassVar[None] = None
    needs_mean: ClassVar[bool] = False

    weighting: Weighting = "ghuber"
    """How the denoising error stands for a log-probability; see :func:`matching_log_prob`."""
    power: float = 0.25
    """Of ``ghuber``."""
    ratio_clip: float = 1.0
    """Distance from 1 beyond which a ratio earns no gradient; at 1 hardly ever."""
    trail: float = 1.0
    """Strength of the pull to the lagging copy."""
    advantage_clip: float = 5.0
    """Advantages beyond this many standard deviations count as this many; they are then divided by it."""
    anchor: VelocityAnchor = field(
        default_factory=lambda: VelocityAnchor(weight=1e-3, guidance=1.0, adaptive="none")
    )
    """Pull to the pretrained model, weak and unguided in the paper."""
    old: Schedule = Ramp(slope=0.001, end=0.3)
    """Decay of the lagging copy."""
    sampling: Schedule | None = None
    """Decay of a separate sampling copy; None samples from the lagging one."""
    times: TimeSampler = field(default_factory=lambda: TimeSampler(kind="discrete_wo_init", high=0.9))
    """Noise levels per image and update."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        if not self.power > 0 or not self.advantage_clip > 0:
            raise ValueError(
                f"Expected AWM power and advantage_clip > 0, got {self.power} and {self.advantage_clip}."
            )
        if not self.ratio_clip >= 0 or not self.trail >= 0:
            raise ValueError(
                f"Expected AWM ratio_clip and trail >= 0, got {self.ratio_clip} and {self.trail}."
            )

    def loss(self, batch: Batch, *, gather: Gather = identity) -> LossOutput:
        """Clipped advantage-weighted matching plus both pulls, per sample."""
        old, noised = require_old(batch, self.name), require_noised(batch, self.name)
        advantage = batch.advantage.clamp(-self.advantage_clip, self.advantage_clip) / self.advantage_clip
        log_prob, log_prob_old = (
            matching_log_prob(v, noised.target, noised.sigma, weighting=self.weighting, power=self.power)
            for v in (batch.current, old.detach())
        )
        log_ratio = log_prob - log_prob_old
        policy = clipped_surrogate(log_ratio, advantage, low=self.ratio_clip, high=self.ratio_clip)
        trail = self.trail * velocity_gap(batch.current, old)
        q = advantage / 2 + 0.5
        leash = self.anchor.term(batch.current, batch.anchor, q=q, raw=batch.raw, gather=gather)
        metrics = {
            "policy_loss": policy.detach(),
            "anchor_loss": leash.detach(),
            "trail_loss": trail.detach(),
            "ratio_gap": (log_ratio.detach().exp() - 1).abs(),
        }
        return LossOutput(policy + trail + leash, metrics)
