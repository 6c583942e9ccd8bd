"""Log-ratios, their diffusion stand-in, and the regression of a centred ratio onto a centred reward."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from imgrl.anchor.centering import Gather, center, group_softmax, identity
from imgrl.flow.conventions import full_precision, mean_dims, require_same_shape

__all__ = ["anchored_softmax", "centered_match", "denoising_gain", "log_ratio"]


def denoising_gain(
    v: Float[Tensor, " n *d"],
    v_old: Float[Tensor, " n *d"],
    target: Float[Tensor, " n *d"],
    *,
    adaptive: bool = True,
    floor: float = 1e-5,
) -> Float[Tensor, " n"]:
    """How much better than the old copy the policy denoises each sample: CRD's implicit reward R (arXiv 2603.14128).

    ``R = -(mean_d (v - target)^2 / w - mean_d (v_old - target)^2 / w_old)`` at one shared noise level and
    noise; it stands in for ``log p / p_old``. ``w`` is 1, or with ``adaptive`` the mean absolute error
    without gradient, at least ``floor``, which makes R comparable across noise levels: both forms are those of
    the first author's code. Computed in float32 or better: R is a small difference of large numbers.
    """
    require_same_shape(v=v, v_old=v_old, target=target)
    target = full_precision(target).detach()
    return _error(full_precision(v_old).detach() - target, adaptive, floor) - _error(
        full_precision(v) - target, adaptive, floor
    )


def _error(error: Tensor, adaptive: bool, floor: float) -> Tensor:
    squared = mean_dims(error**2)
    return squared / mean_dims(error.detach().abs()).clamp(min=floor) if adaptive else squared


def log_ratio(
    log_prob: Float[Tensor, " n t"],
    log_prob_anchor: Float[Tensor, " n t"],
    *,
    mask: Float[Tensor, " n t"],
    level: Literal["token", "sequence", "mean"] = "sequence",
) -> Float[Tensor, " n t"] | Float[Tensor, " n"]:
    """``log policy - log anchor`` of realised tokens: ``[n, t]`` by token, or ``[n]`` summed or averaged.

    In float32 or better. What stands off the mask, even NaN, has no influence.
    """
    require_same_shape(log_prob=log_prob, log_prob_anchor=log_prob_anchor, mask=mask)
    ratio = full_precision(log_prob) - full_precision(log_prob_anchor).detach()
    ratio = torch.where(mask > 0, ratio, 0.0)
    if level == "token":
        return ratio
    if level == "sequence":
        return ratio.sum(-1)
    if level == "mean":
        return ratio.sum(-1) / mask.sum(-1).clamp(min=1)
    raise ValueError(f"Unknown level {level!r}; choose 'token', 'sequence' or 'mean'.")


def anchored_softmax(log_ratios: Float[Tensor, " b g"], *, temperature: float) -> Float[Tensor, " b g"]:
    """Log-probabilities of a group's candidates under ``softmax(log_ratio / temperature)``.

    The anchored distribution of ADPO (arXiv 2510.18913).
    """
    return (full_precision(log_ratios) / temperature).log_softmax(-1)


def centered_match(
    ratio: Float[Tensor, " n"],
    target: Float[Tensor, " n"],
    group: Int[Tensor, " n"],
    *,
    beta: float,
    kind: Literal["mse", "bce"] = "mse",
    temperature: float | None = None,
    gather: Gather = identity,
) -> Float[Tensor, " n"]:
    """CRD's regression (arXiv 2603.14128): the centred, scaled log-ratio onto the centred target, per sample.

    ``mse`` is ``(beta ratio~ - target~)^2``; ``bce`` the logistic loss of ``beta ratio~`` against
    ``sigmoid(target~)``. With a ``temperature`` the loss is the average of two, whose baselines lean towards
    the best and the worst of the group (softmax of plus and minus the target); None is the plain mean. The
    logistic form and the two baselines are those of the first author's code.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"Expected temperature > 0, or None for the plain group mean, got {temperature}.")
    if kind not in ("mse", "bce"):
        raise ValueError(f"Unknown regression {kind!r}; choose 'mse' or 'bce'.")
    require_same_shape(ratio=ratio, target=target, group=group)
    target = target.detach().to(ratio.dtype)
    if temperature is None:
        baselines: list[Tensor | None] = [None]
    else:
        baselines = [
            group_softmax(s * target, group, temperature=temperature, gather=gather) for s in (1, -1)
        ]
    losses: list[Tensor] = []
    for weights in baselines:
        gain = beta * center(ratio, group, weights=weights, gather=gather)
        aim = center(target, group, weights=weights, gather=gather)
        if kind == "mse":
            losses.append((gain - aim) ** 2)
        else:
            losses.append(F.binary_cross_entropy_with_logits(gain, aim.sigmoid(), reduction="none"))
    return torch.stack(losses).mean(0)
