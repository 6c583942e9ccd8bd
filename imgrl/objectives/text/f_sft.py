"""SFT seen as imitation by f-divergence ("implicit reward as the bridge", arXiv 2507.00018): our reconstruction.

The paper's equations were not available to us; everything here is derived anew from its claims. With an anchor,
a policy's log-ratio is ``rho = log p / p_anchor`` and ``beta rho`` its implicit reward. Imitating the expert by an
f-divergence maximises the expected ``phi(beta rho)``, ``phi(x) = -f*(-x)``, on demonstrations. For the total variation
``phi`` is the identity, the anchor drops out, and the objective is SFT: nothing holds its step, hence smaller learning
rates. Every other ``phi`` bends, so that the pull of a demonstration, ``phi'``, wanes as the policy rises above the
anchor. All are scaled to ``phi(0) = 0`` and ``phi'(0) = 1``: at the anchor each one makes SFT's step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import identity, log_ratio
from imgrl.anchor.centering import Gather
from imgrl.objectives.text.base import Need, Reduction, TextBatch, TextLoss, finite, kept
from imgrl.objectives.text.phi import Divergence, phi, phi_slope

__all__ = ["FSFT", "Level", "f_sft_loss", "logits_as_q_loss"]

Level = Literal["token", "sequence_mean", "sequence"]


def f_sft_loss(
    log_prob: Float[Tensor, " n t"],
    anchor: Float[Tensor, " n t"],
    mask: Float[Tensor, " n t"],
    *,
    divergence: Divergence,
    beta: float,
    level: Level = "token",
) -> Float[Tensor, " n t"] | Float[Tensor, " n"]:
    """``-phi(beta rho) / beta``: by token, or by sequence. Our reconstruction of arXiv 2507.00018.

    Its gradient is SFT's times ``phi'(beta rho)``; ``rho`` is the log-ratio of each token, of the sequence's mean over
    tokens, or of its sum.
    """
    rho = log_ratio(log_prob, anchor, mask=mask, level="mean" if level == "sequence_mean" else level)
    return -phi(beta * rho, divergence=divergence) / beta


def logits_as_q_loss(
    log_prob: Float[Tensor, " n t"],
    log_partition: Float[Tensor, " n t"],
    anchor: Float[Tensor, " n t"],
    mask: Float[Tensor, " n t"],
    *,
    divergence: Divergence,
    beta: float,
) -> Float[Tensor, " n"]:
    """Experimental: the same imitation with the logits as soft Q-values, by sequence. Our reconstruction.

    With ``Q = beta (logit - log p_anchor)`` and ``V = beta logsumexp(logits)`` the anchored softmax of ``Q`` is the
    policy itself. A token's reward is ``r = Q - V(next)``, V = 0 after the last one, and the loss
    ``(V(first) - sum phi(r)) / beta``. For the total variation it telescopes to SFT plus a constant and ignores shifts
    of all logits of a position; any other divergence fits V. ``log_partition`` is the logsumexp of each position's
    logits; the next state is that of the next token in the mask.
    """
    inside = mask > 0
    zero = torch.zeros_like(log_prob)
    value = torch.where(inside, log_partition, zero)
    quality = torch.where(inside, log_prob + log_partition - anchor.detach(), zero)
    steps = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    here = torch.where(inside, steps, mask.shape[1])  # beyond the end: no such token
    nearest = here.flip(-1).cummin(-1).values.flip(-1)  # the first loss token from each position on
    end = torch.full_like(nearest[:, :1], mask.shape[1])
    ended = torch.cat([value, zero[:, :1]], 1)
    following = ended.gather(1, torch.cat([nearest[:, 1:], end], 1))
    gain = phi(beta * (quality - following), divergence=divergence) / beta
    first = ended.gather(1, nearest[:, :1])[:, 0]
    return first - torch.where(inside, gain, zero).sum(-1)


@dataclass(frozen=True, kw_only=True)
class FSFT:
    """Supervised fine-tuning by f-divergence: a demonstration pulls less the more it has already been learnt.

    Our reconstruction of arXiv 2507.00018, not the authors' code. Over whole sequences log-ratios reach hundreds of
    nats, where Pearson pushes demonstrations away and the others no longer pull: keep to tokens or means.
    """

    name: ClassVar[str] = "f_sft"
    paper: ClassVar[str] = "arXiv 2507.00018 (reconstruction)"
    kind: ClassVar[Literal["supervised"]] = "supervised"
    anchored: ClassVar[tuple[str, str, str]] = ("frozen base", "log-ratio", "the loss itself, through phi")

    divergence: Divergence = "pearson"
    """What is minimised between demonstrations and policy; ``total_variation`` is SFT."""
    beta: float = 0.1
    """Nats to reward: the larger, the sooner the pull wanes. Pearson's ends ``2 / beta`` nats above the anchor."""
    level: Level = "token"
    """Where log-ratios are bent: each token's, the mean, or the sum over a sequence."""
    reduction: Reduction = "token"
    """How tokens are averaged at level ``token``; sequences are averaged alike at the others."""

    def __post_init__(self) -> None:
        """Refuse a reward without scale and names that do not exist."""
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"Expected a finite beta > 0, got {self.beta}; use objective sft for beta -> 0.")
        for field, value, kind in (("divergence", self.divergence, Divergence), ("level", self.level, Level)):
            if value not in get_args(kind):
                raise ValueError(f"Unknown {field} {value!r}; choose among {', '.join(get_args(kind))}.")

    @property
    def needs(self) -> frozenset[Need]:
        """The anchor's log-probabilities of the same tokens, also where the divergence makes them cancel."""
        return frozenset({"anchor"})

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """The bent log-ratio by token or sequence, and how hard it pulls."""
        del gather
        log_prob, anchor = kept(batch.log_prob, batch.mask), finite(batch, "anchor", self.name)
        loss = f_sft_loss(
            log_prob, anchor, batch.mask, divergence=self.divergence, beta=self.beta, level=self.level
        )
        level = "mean" if self.level == "sequence_mean" else self.level
        rho = log_ratio(log_prob.detach(), anchor, mask=batch.mask, level=level)
        metrics = {"log_ratio": rho, "pull": phi_slope(self.beta * rho, divergence=self.divergence)}
        return TextLoss(loss, metrics)
