"""DPO, Direct Preference Optimization (arXiv 2305.18290): ADPO on pairs with hard labels.

Both rows of a pair carry its loss, so that the mean over sequences is the mean over pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from imgrl.anchor import identity
from imgrl.anchor.centering import Gather
from imgrl.objectives.text.adpo_losses import anchored_scores, pairwise_loss
from imgrl.objectives.text.base import Need, Reduction, TextBatch, TextLoss, require
from imgrl.objectives.text.lists import (
    Norm,
    list_metrics,
    list_rewards,
    list_rows,
    sequence_scores,
    spread,
    win_probability,
)

__all__ = ["DPO"]


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Direct preference optimisation (arXiv 2305.18290): ADPO on pairs with hard labels, temperature ``1 / beta``.

    The first row of each pair is the preferred one; where the batch has rewards, the higher reward is, and equal ones
    count half.
    """

    name: ClassVar[str] = "dpo"
    paper: ClassVar[str] = "arXiv 2305.18290"
    kind: ClassVar[Literal["preference"]] = "preference"
    anchored: ClassVar[tuple[str, str, str]] = (
        "frozen reference",
        "log-ratio of a pair",
        "logistic loss, scale beta",
    )
    reduction: ClassVar[Reduction] = "sequence_mean"

    beta: float = 0.1
    """Strength of the reference: larger ends closer to it."""
    label_smoothing: float = 0.0
    """Share of labels thought wrong (cDPO); 0 is DPO."""
    score_norm: Norm = "sum"
    """Log-probability of a sequence as sum (DPO) or mean over its tokens."""

    def __post_init__(self) -> None:
        """Refuse settings under which the loss means nothing."""
        if not 0 < self.beta < float("inf") or not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                "Expected a finite beta > 0 and label_smoothing in [0, 0.5), "
                f"got {self.beta} and {self.label_smoothing}; 0.1 and 0 are usual."
            )
        if self.score_norm not in get_args(Norm):
            raise ValueError(f"Unknown score_norm {self.score_norm!r}; choose 'sum' or 'mean'.")

    @property
    def needs(self) -> frozenset[Need]:
        """The reference's log-probabilities of the same tokens."""
        return frozenset({"anchor"})

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Both rows of a pair carry its logistic loss."""
        del gather
        rows = list_rows(batch, size=2)
        live = sequence_scores(batch.log_prob, batch.mask, norm=self.score_norm)
        field = require(batch, "anchor", self.name).detach()
        anchor = sequence_scores(field, batch.mask, norm=self.score_norm, name="anchor")
        first = live.new_ones(len(rows))
        if batch.reward is not None:
            reward = list_rewards(batch, rows, name=self.name)
            first = (1 + (reward[:, 0] - reward[:, 1]).sign()) / 2
        preference = first * (1 - self.label_smoothing) + (1 - first) * self.label_smoothing
        loss = pairwise_loss(live[rows], anchor[rows], preference, temperature=1 / self.beta)
        u = anchored_scores(live[rows], anchor[rows], temperature=1 / self.beta)
        win = spread(win_probability(u, (first < 0.5).long()), rows)
        metrics = list_metrics(batch, anchor, norm=self.score_norm)
        return TextLoss(spread(loss, rows), {"win_probability": win, **metrics})
