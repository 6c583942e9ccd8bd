"""ADPO's losses on lists of candidates (arXiv 2510.18913): listwise, pairwise, and the damping of its steps.

``b`` prompts with ``k`` candidates each. Scores are log-probabilities up to a constant by list: raw logits do as well
where the candidates are a vocabulary. Only the live scores receive a gradient.
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import anchored_softmax
from imgrl.flow.conventions import full_precision, require_same_shape
from imgrl.objectives.text.adpo_targets import Target

__all__ = ["adpo_loss", "anchored_scores", "pairwise_loss", "step_damping", "surprise", "target_loss"]


def anchored_scores(
    scores: Float[Tensor, " b k"],
    anchor: Float[Tensor, " b k"] | None,
    *,
    temperature: float | Float[Tensor, " b"],
) -> Float[Tensor, " b k"]:
    """``u = (scores - anchor) / temperature`` in float32 or better; None is the uniform anchor.

    ``temperature`` is one number, or one for each list, without gradient.
    """
    ratio = full_precision(scores)
    if anchor is not None:
        require_same_shape(scores=scores, anchor=anchor)
        ratio = ratio - full_precision(anchor).detach()
    if isinstance(temperature, Tensor):
        return ratio / temperature.detach()[:, None]
    if not temperature > 0:
        raise ValueError(f"Expected a temperature > 0, got {temperature}; it is 1 / beta in terms of DPO.")
    return ratio / temperature


def adpo_loss(
    scores: Float[Tensor, " b k"],
    anchor: Float[Tensor, " b k"] | None,
    q: Float[Tensor, " b k"],
    *,
    temperature: float | Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Listwise ADPO: cross-entropy from ``q`` to the anchored softmax, by list, nats.

    The gradient by score is ``(p~ - q) / temperature``; where the policy is free it ends at ``anchor q^temperature``.
    So a small temperature holds the policy near the anchor, and a large one frees it while its steps shrink.
    """
    require_same_shape(scores=scores, q=q)
    log_p = anchored_softmax(anchored_scores(scores, anchor, temperature=temperature), temperature=1.0)
    return -(q.detach() * log_p).sum(-1)


def target_loss(
    scores: Float[Tensor, " b k"], target: Target, anchor: Float[Tensor, " b k"] | None = None
) -> Float[Tensor, " b"]:
    """The loss by list of a named target, with the anchor it is meant for and no other."""
    if target.anchored != (anchor is not None):
        wanted, given = ("a model", "none") if target.anchored else ("the uniform anchor (None)", "a model")
        raise ValueError(f"Expected {wanted} as anchor for this target, got {given}; see Target.anchored.")
    return adpo_loss(scores, anchor, target.q.to(scores.device), temperature=target.temperature)


def pairwise_loss(
    scores: Float[Tensor, " b 2"],
    anchor: Float[Tensor, " b 2"] | None,
    preference: Float[Tensor, " b"] | float = 1.0,
    *,
    temperature: float | Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Pairwise ADPO: logistic loss of the margin, ``preference`` the probability that the first is better; nats.

    1 is DPO at ``beta = 1 / temperature``, ``1 - label_smoothing`` is cDPO, anything between is soft. Equal to the
    listwise loss on lists of two. The soft form is the paper's first version's; its formula is derived here.
    """
    u = anchored_scores(scores, anchor, temperature=temperature)
    margin = u[:, 0] - u[:, 1]
    return -preference * F.logsigmoid(margin) - (1 - preference) * F.logsigmoid(-margin)


def surprise(mean_log_prob: Float[Tensor, " *n"], *, vocabulary: int) -> Float[Tensor, " *n"]:
    """``-mean_log_prob / log vocabulary`` inside [0, 1]: 1 for a policy that guesses, without gradient."""
    if vocabulary < 2:
        raise ValueError(
            f"Expected a vocabulary of at least 2 tokens, got {vocabulary}; pass the tokenizer's."
        )
    return (-full_precision(mean_log_prob).detach() / math.log(vocabulary)).clamp(0, 1)


def step_damping(
    surprise: Float[Tensor, " b"],
    reward: Float[Tensor, " b"],
    *,
    temperature: float,
    rule: Literal["late", "early"] = "late",
    surprise_weight: float = 0.5,
    error_weight: float = 1.0,
    floor: float = 0.1,
    ceiling: float = 5.0,
) -> Float[Tensor, " b"]:
    """ADPO's adaptive temperature by list, without gradient: how much smaller the steps of uncertain prompts are.

    Two rules were published, of opposite slope in the surprise H. ``late`` is
    ``temperature (1 + surprise_weight H + error_weight (1 - H)(1 - R))``: largest where the policy is sure and wrong.
    ``early`` is ``temperature (1 - surprise_weight H)``, published with weight 1. Both are kept inside
    ``[floor, ceiling]``. A larger temperature divides the gradient, yet lets the policy end further from its anchor: it
    is a damper, and not a tighter leash as the paper says in one place.

    Args:
        surprise: H in [0, 1], see ``surprise``.
        reward: R in [0, 1], the success on that prompt; not read by ``early``.
        temperature: what is scaled.
        rule: which of the two.
        surprise_weight: weight of H.
        error_weight: weight of ``(1 - H)(1 - R)``.
        floor: least temperature returned.
        ceiling: greatest temperature returned.
    """
    require_same_shape(surprise=surprise, reward=reward)
    h, r = full_precision(surprise).detach(), full_precision(reward).detach().clamp(0, 1)
    if rule == "late":
        factor = 1 + surprise_weight * h + error_weight * (1 - h) * (1 - r)
    elif rule == "early":
        factor = 1 - surprise_weight * h
    else:
        raise ValueError(f"Unknown damping rule {rule!r}; choose 'late' or 'early'.")
    return (temperature * factor).clamp(floor, ceiling)
