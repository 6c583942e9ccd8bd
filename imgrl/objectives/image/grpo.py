"""Flow-GRPO (arXiv 2505.05470): policy gradients on the random steps of the sampler.

A rollout's random step is a Gaussian action, so it has a likelihood ratio, clipped as in PPO. Log-densities
are means over the latent's numbers; a ratio is then the geometric mean over dimensions, which is why clip
ranges are tiny. Few random steps at high noise (Flow-GRPO-Fast, MixGRPO) train as well as all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import Constant, Schedule, VelocityAnchor, identity, transition_gap
from imgrl.anchor.centering import Gather
from imgrl.flow.conventions import mean_dims
from imgrl.flow.stochastic import StochasticStep
from imgrl.flow.trajectory import StochasticSampler
from imgrl.objectives.image.base import Batch, LossOutput, require_transition
from imgrl.objectives.image.crd import crd_target
from imgrl.objectives.surrogate import clipped_surrogate
from imgrl.types import Transition

__all__ = ["GRPO", "divergence_mask", "guarded_log_ratio"]


def guarded_log_ratio(
    log_ratio: Float[Tensor, " n"],
    mean: Float[Tensor, " n *d"],
    mean_old: Float[Tensor, " n *d"],
    std: Float[Tensor, " n"],
    *,
    normalised: bool = True,
) -> Float[Tensor, " n"]:
    """GRPO-Guard's exponent (arXiv 2510.22319), ``mean_d(z (mean - mean_old))``: no bias, one scale at all steps.

    A mean log-ratio is ``mean(z D) / std - mean(D^2) / (2 std^2)`` with ``D = mean - mean_old``: its second
    part pulls ratios below 1, and its scale changes with the step. ``normalised`` is False for log-densities
    without variance (``-(x - mean)^2``).
    """
    moved = mean_dims((mean - mean_old.detach()) ** 2)
    if normalised:
        return std * (log_ratio + moved / (2 * std**2))
    return (log_ratio + moved) / (2 * std)


def divergence_mask(
    log_ratio: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    divergence: Float[Tensor, " n"],
    *,
    limit: float,
) -> Float[Tensor, " n"]:
    """0 for samples that are farther than ``limit`` from the policy that made them and would go on, else 1.

    Unlike a clipped ratio, which depends on the sample drawn, the divergence says how far the step itself has
    moved.
    """
    outward = torch.where(advantage > 0, log_ratio > 0, log_ratio < 0)
    return (~(outward & (divergence > limit))).to(log_ratio.dtype).detach()


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """Flow-GRPO with windows; every published variant is a setting.

    Example:
        ``GRPO(sampler=StochasticSampler(kind="cps", window=2), clip=1e-5)`` is Adv-GRPO's generator step.
    """

    name: ClassVar[str] = "grpo"
    anchored: ClassVar[tuple[str, str, str]] = (
        "frozen model; the policy that sampled",
        "velocity gap or transition KL; log-ratio",
        "added; clipped ratio",
    )
    uses_old: ClassVar[bool] = False
    shares_noise: ClassVar[bool] = False
    times: ClassVar[None] = None

    sampler: StochasticSampler = field(default_factory=StochasticSampler)
    """Which steps are random and how."""
    clip: float = 1e-4
    """Distance from 1 beyond which a ratio earns no gradient; 1e-5 with short windows."""
    ratio: Literal["plain", "guard"] = "plain"
    """``guard`` removes the bias and the scale of mean log-ratios (GRPO-Guard)."""
    divergence_limit: float | None = None
    """Transition KL (per dimension) beyond which a sample gets no gradient away from the policy that made it."""
    kl: Literal["velocity", "transition"] = "velocity"
    """Distance to the pretrained model: of velocities, or the KL of the step's Gaussians."""
    advantage_clip: float = 5.0
    """Advantages beyond this many standard deviations count as this many."""
    anchor: VelocityAnchor = field(
        default_factory=lambda: VelocityAnchor(weight=0.0, guidance=1.0, adaptive="none")
    )
    """Pull to the pretrained model; Flow-GRPO's fast settings use none."""
    old: Schedule = Constant()
    """Not used."""
    sampling: Schedule | None = Constant()
    """Decay of the copy that makes the images: always the newest weights."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        if not self.clip > 0 or not self.advantage_clip > 0:
            raise ValueError(
                f"Expected GRPO clip and advantage_clip > 0, got {self.clip} and {self.advantage_clip}."
            )
        if self.ratio not in ("plain", "guard"):
            raise ValueError(f"Unknown GRPO ratio {self.ratio!r}; choose 'plain' or 'guard'.")
        if self.kl not in ("velocity", "transition"):
            raise ValueError(f"Unknown GRPO kl {self.kl!r}; choose 'velocity' or 'transition'.")
        if self.divergence_limit is not None and not self.divergence_limit > 0:
            raise ValueError(f"Expected GRPO divergence_limit > 0, or none, got {self.divergence_limit}.")

    @property
    def needs_mean(self) -> bool:
        """Whether a rollout must keep the means of its random steps."""
        return self.ratio == "guard" or self.divergence_limit is not None

    def loss(self, batch: Batch, *, gather: Gather = identity) -> LossOutput:
        """Clipped policy gradient plus the anchor, per sample."""
        transition = require_transition(batch, self.name)
        advantage = batch.advantage.clamp(-self.advantage_clip, self.advantage_clip)
        step = self._step(transition, batch.current)
        log_ratio = step.log_prob - transition.log_prob
        exponent, mask = log_ratio, torch.ones_like(log_ratio)
        if self.needs_mean:
            if transition.mean is None:
                raise ValueError(
                    "Expected Transition.mean, the rollout's means, for this GRPO setting, got None."
                )
            exponent, mask = self._held(step, transition.mean, log_ratio, advantage)
        policy = mask * clipped_surrogate(exponent, advantage, low=self.clip, high=self.clip)
        leash = self._leash(batch, transition, step, gather)
        beyond = (exponent.detach().exp() - 1).abs() > self.clip
        metrics = {
            "policy_loss": policy.detach(),
            "anchor_loss": leash.detach(),
            "log_ratio": log_ratio.detach().abs(),
            "clipped": beyond.to(policy.dtype),
            "held": 1 - mask,
        }
        return LossOutput(policy + leash, metrics)

    def _step(self, transition: Transition, v: Tensor) -> StochasticStep:
        return self.sampler.step(
            transition.state, v, sigmas=transition.sigmas, index=transition.index, sample=transition.after
        )

    def _held(
        self, step: StochasticStep, mean_old: Tensor, log_ratio: Tensor, advantage: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The exponent of the ratio and the mask of samples, by the settings that need the rollout's means."""
        mask = torch.ones_like(log_ratio)
        if self.divergence_limit is not None:
            moved = transition_gap(step.mean.detach(), mean_old, std=step.std)
            mask = divergence_mask(log_ratio, advantage, moved, limit=self.divergence_limit)
        if self.ratio == "plain":
            return log_ratio, mask
        normalised = self.sampler.log_density == "gaussian"
        return guarded_log_ratio(log_ratio, step.mean, mean_old, step.std, normalised=normalised), mask

    def _leash(self, batch: Batch, transition: Transition, step: StochasticStep, gather: Gather) -> Tensor:
        """The anchor's term: in velocities, or as the KL of the step's two Gaussians."""
        q = crd_target(batch.advantage, clip=self.advantage_clip)
        if self.kl == "velocity" or not self.anchor.active:
            return self.anchor.term(batch.current, batch.anchor, q=q, raw=batch.raw, gather=gather)
        if batch.anchor is None:
            raise ValueError(
                f"Expected the frozen model's velocity for anchor weight {self.anchor.weight}, got None."
            )
        gap = transition_gap(step.mean, self._step(transition, batch.anchor).mean, std=step.std)
        return self.anchor.weights(q, batch.raw, gather=gather) * gap
