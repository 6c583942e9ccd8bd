"""How far the policy is from an anchor, per sample. The anchor's side never receives a gradient."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.flow.conventions import full_precision, mean_dims, per_sample, require_same_shape

__all__ = ["categorical_kl", "sampled_kl", "transition_gap", "velocity_gap"]


def velocity_gap(v: Float[Tensor, " n *d"], v_anchor: Float[Tensor, " n *d"]) -> Float[Tensor, " n"]:
    """Mean squared distance of velocities: the KL of flow models up to a weight by noise level.

    The path KL weights this by ``(1 - sigma) / sigma`` and sums over dimensions; this is the unweighted mean
    that CRD (arXiv 2603.14128), DiffusionNFT (arXiv 2509.16117) and AWM (arXiv 2509.25050) train.
    """
    require_same_shape(v=v, v_anchor=v_anchor)
    return mean_dims((full_precision(v) - full_precision(v_anchor).detach()) ** 2)


def transition_gap(
    mean: Float[Tensor, " n *d"], mean_anchor: Float[Tensor, " n *d"], *, std: Float[Tensor, " n"] | float
) -> Float[Tensor, " n"]:
    """KL of two Gaussians of equal ``std``, per dimension: ``mean_d (mean - mean_anchor)^2 / (2 std^2)``.

    In nats. ``std`` is the real standard deviation of the step, ``sqrt(-dt)`` included. Flow-GRPO's KL (arXiv
    2505.05470), whose code leaves that factor to the KL's weight.
    """
    require_same_shape(mean=mean, mean_anchor=mean_anchor)
    mean = full_precision(mean)
    return mean_dims((mean - mean_anchor.detach()) ** 2 / (2 * per_sample(std, mean) ** 2))


def categorical_kl(
    logits: Float[Tensor, " *n k"],
    anchor_logits: Float[Tensor, " *n k"],
    *,
    direction: Literal["reverse", "forward"] = "reverse",
) -> Float[Tensor, " *n"]:
    """Exact KL of two categorical distributions, nats.

    ``reverse`` is KL(policy || anchor), ``forward`` is KL(anchor || policy). An outcome that the first one rules out
    (a logit of minus infinity, as masked vocabularies have) adds nothing; one that only the second rules out makes
    it infinite.
    """
    require_same_shape(logits=logits, anchor_logits=anchor_logits)
    policy = full_precision(logits).log_softmax(-1)
    anchor = full_precision(anchor_logits).detach().log_softmax(-1)
    if direction == "reverse":
        return _kl(policy, anchor)
    if direction == "forward":
        return _kl(anchor, policy)
    raise ValueError(f"Unknown KL direction {direction!r}; choose 'reverse' or 'forward'.")


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    gap = torch.where(log_p == -math.inf, 0.0, log_p - log_q)  # 0 log 0 is 0
    return (log_p.exp() * gap).sum(-1)


def sampled_kl(
    log_ratio: Float[Tensor, " *n"], *, estimator: Literal["k1", "k2", "k3"] = "k3"
) -> Float[Tensor, " *n"]:
    """Estimate of KL(policy || anchor) from log-ratios on the policy's own samples (Schulman 2020).

    As values, k1 and k3 are unbiased and k2 is not. As losses on fixed samples they differ: k1 has a mean
    gradient of zero, k2 gives the reverse KL's gradient and k3 the forward KL's.
    """
    log_ratio = full_precision(log_ratio)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"Unknown KL estimator {estimator!r}; choose 'k1', 'k2' or 'k3'.")
