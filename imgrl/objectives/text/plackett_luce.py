"""The Plackett-Luce likelihood of an order (ListMLE), ADPO's loss in its author's later code (arXiv 2510.18913)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.flow.conventions import full_precision, require_same_shape

__all__ = ["plackett_luce_loss", "suffix_logsumexp"]


def suffix_logsumexp(x: Float[Tensor, " b k"]) -> Float[Tensor, " b k"]:
    """``logsumexp(x[:, i:])`` at every ``i``, stable, with the exact gradient everywhere."""
    return x.flip(-1).logcumsumexp(-1).flip(-1)


def plackett_luce_loss(
    scores: Float[Tensor, " b k"],
    reward: Float[Tensor, " b k"],
    *,
    how: Literal["sum", "mean"] = "mean",
    top_k: int | None = None,
    label_smoothing: float = 0.0,
    poly: float = 0.0,
) -> Float[Tensor, " b"]:
    """Negative log-likelihood, nats, that candidates are drawn in the order of falling reward.

    At each of the first ``k - 1`` places a softmax over the candidates left must name the next. With ``how="sum"`` it
    is minus the log of a distribution over all orders, whose first place is ``softmax(scores)``; the author's code
    takes the mean over places. Equal rewards are taken in the order given.

    Args:
        scores: the logits ``u``, such as ADPO's anchored log-ratios over their temperature.
        reward: what orders each list; no gradient.
        how: sum or mean over the places counted.
        top_k: only the first so many places; None counts all ``k - 1``.
        label_smoothing: share of each place's target spread evenly over the candidates left.
        poly: ``e`` of the added ``e (1 - p)`` (Leng et al. 2022), ``p = exp(-loss)`` of each place, after smoothing as
            in the author's code.

    Raises:
        ValueError: an option is out of range, or a list has fewer than two candidates.
    """
    require_same_shape(scores=scores, reward=reward)
    k = scores.shape[-1]
    if k < 2:
        raise ValueError(f"Expected at least two candidates in a list, got {k}; drop lists of one.")
    if top_k is not None and not top_k >= 1:
        raise ValueError(f"Expected top_k >= 1, or None for all places, got {top_k}.")
    if not 0 <= label_smoothing < 1 or not poly >= 0:
        raise ValueError(
            f"Expected label_smoothing in [0, 1) and poly >= 0, got {label_smoothing} and {poly}; 0 turns them off."
        )
    if how not in ("sum", "mean"):
        raise ValueError(f"Unknown how={how!r}; choose 'sum' or 'mean' over places.")
    order = reward.detach().argsort(dim=-1, descending=True, stable=True)
    ranked = full_precision(scores).gather(-1, order)
    normaliser = suffix_logsumexp(ranked)
    loss = normaliser - ranked
    if label_smoothing > 0:
        left = torch.arange(k, 0, -1, device=scores.device)
        mean_left = ranked.flip(-1).cumsum(-1).flip(-1) / left
        loss = (1 - label_smoothing) * loss + label_smoothing * (normaliser - mean_left)
    loss = loss[:, : min(k - 1, top_k or k)]  # the last place has one candidate left and no loss
    if poly > 0:
        loss = loss + poly * (1 - (-loss).exp())
    return loss.sum(-1) if how == "sum" else loss.mean(-1)
