"""ADPO, Anchored Direct Preference Optimization (arXiv 2510.18913).

The loss belongs to a whole prompt, so groups must be whole and of one size in every batch. Each row carries its group's
loss: with equal groups, the mean over sequences is the mean over prompts. A sample that could not be scored is no
candidate of its prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.anchor import identity
from imgrl.anchor.centering import Gather
from imgrl.objectives.text import adpo_losses as losses
from imgrl.objectives.text.adpo_targets import boltzmann, zscore
from imgrl.objectives.text.base import Need, Reduction, TextBatch, TextLoss, require
from imgrl.objectives.text.clipped import check_passes
from imgrl.objectives.text.kde import kde_scores
from imgrl.objectives.text.lists import (
    Norm,
    list_metrics,
    list_rewards,
    list_rows,
    scored_lists,
    sequence_scores,
    spread,
    win_probability,
)
from imgrl.objectives.text.plackett_luce import plackett_luce_loss

__all__ = ["ADPO"]

TargetKind = Literal["zscore", "reward", "kde", "order"]
AnchorKind = Literal["old", "anchor", "uniform"]
Damping = Literal["none", "late", "early"]


@dataclass(frozen=True, kw_only=True)
class ADPO:
    """Fit the anchored softmax over a prompt's own samples to a target made of their rewards.

    Defaults are the published run on mathematics with language models (groups of 8), without its adaptive temperature.
    At the start of a rollout, anchored to the sampling policy, the gradient is REINFORCE's with weights
    ``(q - 1 / k) / temperature``; equal rewards give none.
    """

    name: ClassVar[str] = "adpo"
    paper: ClassVar[str] = "arXiv 2510.18913"
    kind: ClassVar[Literal["online"]] = "online"
    anchored: ClassVar[tuple[str, str, str]] = (
        "old (each rollout), or frozen base",
        "log-ratio, softmax over the group",
        "logits of the cross-entropy",
    )
    reduction: ClassVar[Reduction] = "sequence_mean"

    target: TargetKind = "zscore"
    """Softmax of standardised rewards, of raw ones, or of smoothed ranks for heavy tails (``kde``, a reconstruction);
    ``order`` is Plackett-Luce on the order of rewards, the default of the author's later code."""
    anchor: AnchorKind = "old"
    """The policy that sampled (moves with every rollout, costs nothing), the base (frozen unless the recipe's
    ``anchor`` moves it; the choice for distillation), or none."""
    temperature: float = 0.8
    """Of the anchored softmax: 1 / beta of DPO. Larger lets the policy end further from the anchor. A value belongs to
    one ``score_norm``: means over tokens are smaller by the length (the author's code: 0.5)."""
    reward_temperature: float = 0.5
    """Of the target: smaller trusts the best candidate more. Not used by ``order``."""
    score_norm: Norm = "sum"
    """Log-probability of a sequence as sum or mean over tokens. The paper assumes means, its first code sums."""
    damping: Damping = "none"
    """Adaptive temperature by prompt, by either published rule; it shortens steps and is no tighter leash."""
    vocabulary: int | None = None
    """Size of the vocabulary, which scales the surprise for ``damping``."""
    group_size: int | None = None
    """Refuse groups of another size; None accepts any."""
    top_k: int | None = None
    """``order`` only: count the first so many places (the author's later code: 3)."""
    label_smoothing: float = 0.0
    """``order`` only: smoothing of each place (the author's later code: 0.1)."""
    poly: float = 0.0
    """``order`` only: weight of the added ``1 - p`` of each place (the author's later code: 1)."""
    passes: int = 1
    """Updates on each batch of completions; anchored to the policy that sampled, only from the second one on does the
    policy differ from its anchor."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        for field, kind in (
            ("target", TargetKind),
            ("anchor", AnchorKind),
            ("score_norm", Norm),
            ("damping", Damping),
        ):
            if (value := getattr(self, field)) not in get_args(kind):
                raise ValueError(f"Unknown {field} {value!r}; choose among {', '.join(get_args(kind))}.")
        if not 0 < self.temperature < float("inf") or not 0 < self.reward_temperature < float("inf"):
            raise ValueError(
                "Expected finite temperature and reward_temperature > 0, "
                f"got {self.temperature} and {self.reward_temperature}; 0.8 and 0.5 are the published ones."
            )
        if self.damping != "none" and self.vocabulary is None:
            raise ValueError(
                f"Expected vocabulary for damping={self.damping!r}, got None; pass the tokenizer's size."
            )
        check_passes(self.passes)
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"Expected group_size >= 2, or None for any, got {self.group_size}.")
        self._order_loss(torch.zeros(1, 2), torch.zeros(1, 2))

    @property
    def needs(self) -> frozenset[Need]:
        """The anchor's log-probabilities of the same tokens, if there is an anchor."""
        return frozenset() if self.anchor == "uniform" else frozenset({self.anchor})

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Each row carries its prompt's cross-entropy (or Plackett-Luce likelihood) over the samples with a reward.

        A NaN reward is none. A prompt with fewer than two teaches nothing: its rows carry 0, and what is logged of
        lists leaves it out.
        """
        del gather
        rows = list_rows(batch, size=self.group_size)
        reward = list_rewards(batch, rows, name=self.name, unscored=True)
        live = sequence_scores(batch.log_prob, batch.mask, norm=self.score_norm)
        anchor = None
        if self.anchor != "uniform":
            field = require(batch, self.anchor, self.name).detach()
            anchor = sequence_scores(field, batch.mask, norm=self.score_norm, name=self.anchor)
        loss = 0.0 * live[rows].sum(-1)  # a graph also where nothing was scored
        win, temperature = torch.full_like(loss.detach(), math.nan), torch.full_like(loss.detach(), math.nan)
        for which, own, scores in scored_lists(rows, reward):
            temperature[which] = self._temperatures(batch, own, scores).to(loss.dtype)
            u = losses.anchored_scores(
                live[own], None if anchor is None else anchor[own], temperature=temperature[which]
            )
            loss[which] = self._list_loss(u, scores).to(loss.dtype)
            win[which] = win_probability(u, scores.argmax(-1)).to(loss.dtype)
        said = {"win_probability": spread(win, rows), "temperature": spread(temperature, rows)}
        metrics = {name: value[~value.isnan()] for name, value in said.items()}
        return TextLoss(spread(loss, rows), {**metrics, **list_metrics(batch, anchor, norm=self.score_norm)})

    def _list_loss(self, u: Float[Tensor, " b k"], reward: Float[Tensor, " b k"]) -> Float[Tensor, " b"]:
        if self.target == "order":
            return self._order_loss(u, reward)
        return losses.adpo_loss(u, None, self._target(reward), temperature=1.0)

    def _target(self, reward: Float[Tensor, " b k"]) -> Float[Tensor, " b k"]:
        if self.target == "zscore":
            reward = zscore(reward)
        elif self.target == "kde":
            reward = kde_scores(reward)
        return boltzmann(reward, temperature=self.reward_temperature)

    def _order_loss(self, u: Float[Tensor, " b k"], reward: Float[Tensor, " b k"]) -> Float[Tensor, " b"]:
        """Plackett-Luce, and nothing where all rewards are equal: there is no order to learn."""
        loss = plackett_luce_loss(
            u, reward, top_k=self.top_k, label_smoothing=self.label_smoothing, poly=self.poly
        )
        return torch.where((reward != reward[:, :1]).any(-1), loss, 0.0 * loss)

    def _temperatures(self, batch: TextBatch, rows: Tensor, reward: Tensor) -> Float[Tensor, " b"]:
        if self.damping == "none" or self.vocabulary is None:
            return reward.new_full(reward.shape[:1], self.temperature)
        mean = sequence_scores(batch.log_prob.detach(), batch.mask, norm="mean")
        h = losses.surprise(mean, vocabulary=self.vocabulary)[rows].mean(-1)
        r = reward.clamp(0, 1).mean(-1)
        return losses.step_damping(h, r, temperature=self.temperature, rule=self.damping)
