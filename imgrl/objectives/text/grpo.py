"""GRPO on tokens (arXiv 2402.03300), and PPO's clipped step as the special case of a given advantage.

The ratio compares the live policy with the one that wrote the tokens; the anchor enters beside it as a KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from imgrl.anchor import identity
from imgrl.anchor.centering import Gather
from imgrl.objectives.text.base import TextBatch, TextLoss, kept
from imgrl.objectives.text.clipped import Clipped, online

__all__ = ["GRPO"]


@dataclass(frozen=True, kw_only=True)
class GRPO(Clipped):
    """Clipped policy gradient with group-relative advantages and an optional KL to the anchor.

    Example:
        ``GRPO(clip_high=0.28, reduction="token")`` is DAPO's clip and averaging.
    """

    name: ClassVar[str] = "grpo"
    paper: ClassVar[str] = "arXiv 2402.03300"
    kind: ClassVar[Literal["online"]] = "online"
    anchored: ClassVar[tuple[str, str, str]] = (
        "old (each rollout); frozen reference",
        "ratio; reverse KL",
        "clipped ratio; added",
    )

    def loss(self, batch: TextBatch, *, gather: Gather = identity) -> TextLoss:
        """Clipped surrogate plus the KL, by token."""
        del gather
        log_ratio, advantage = online(batch, self.name)
        loss, metrics = self.surrogate(log_ratio, advantage, batch.mask)
        metrics["ratio_gap"] = kept((log_ratio.detach().exp() - 1).abs(), batch.mask)
        return self.with_kl(loss, metrics, batch)
