"""Fills what an objective reads of each token, with as few forward passes as it asks for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imgrl.objectives.text.base import Need
from imgrl.objectives.text.tokens import Want, token_kl, token_log_probs, token_statistics
from imgrl.training.text.snapshots import Snapshot

__all__ = ["Rows", "live_fields", "log_probs", "logits_of"]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Sequences and the tokens to learn from; the last ``t`` positions of each sequence are scored."""

    input_ids: Tensor
    """[n, length]"""
    attention_mask: Tensor
    """[n, length]"""
    tokens: Tensor
    """[n, t]: the tokens that the scored positions predict; anything where the mask is 0."""
    mask: Tensor
    """[n, t]: 1 where a token carries loss."""

    def select(self, rows: Tensor | slice) -> Rows:
        """Some of the sequences."""
        return Rows(
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            tokens=self.tokens[rows],
            mask=self.mask[rows],
        )


def logits_of(model: nn.Module, rows: Rows, temperature: float) -> Tensor:
    """Logits [n, t, v] that predict ``rows.tokens``, divided by the temperature where that is not 1."""
    kept = rows.tokens.shape[1]
    out: Any = model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        logits_to_keep=kept + 1,
        use_cache=False,
    )
    logits = out.logits[:, -(kept + 1) : -1]
    return logits if temperature == 1 else logits / temperature


@torch.no_grad()
def log_probs(model: nn.Module, rows: Rows, *, temperature: float, batch: int) -> Tensor:
    """Log-probabilities [n, t] without gradient, ``batch`` sequences at a time."""
    parts = [
        token_log_probs(logits_of(model, part, temperature), part.tokens, mask=part.mask.to(torch.float32))
        for part in (rows.select(slice(i, i + batch)) for i in range(0, len(rows.tokens), batch))
    ]
    return torch.cat(parts)


def live_fields(
    model: nn.Module,
    rows: Rows,
    *,
    needs: Collection[Need],
    temperature: float = 1.0,
    base: Snapshot | None = None,
    previous: Snapshot | None = None,
) -> dict[str, Tensor]:
    """``log_prob`` and those of ``entropy, forward_kl, reverse_kl, previous_kl, anchor`` that are needed.

    Args:
        model: the policy as trained; its wrapper, if it has one.
        rows: what to score.
        needs: an objective's ``needs``; other fields are the caller's to fill.
        temperature: divides all logits.
        base: the anchor's weights.
        previous: those of the policy before the last update block.
    """
    mask = rows.mask.to(torch.float32)
    own: nn.Module = getattr(model, "module", model)  # a wrapper must not see forwards without gradient
    anchor_logits = previous_logits = None
    # Anchors first: their weights are switched in and out again before the graph of the live pass exists.
    if base is not None and {"forward_kl", "reverse_kl", "anchor"} & set(needs):
        with base.applied(own):
            anchor_logits = logits_of(own, rows, temperature)
    if previous is not None and "previous_kl" in needs:
        with previous.applied(own):
            previous_logits = logits_of(own, rows, temperature)
    logits = logits_of(model, rows, temperature)
    want: list[Want] = ["log_prob"]
    want += [name for name in ("entropy", "forward_kl", "reverse_kl") if name in needs]  # type: ignore[misc]
    fields = token_statistics(logits, rows.tokens, want=want, mask=mask, anchor_logits=anchor_logits)
    if "anchor" in needs and anchor_logits is not None:
        fields["anchor"] = token_log_probs(anchor_logits, rows.tokens, mask=mask).detach()
    if previous_logits is not None:
        fields["previous_kl"] = token_kl(logits, previous_logits, direction="reverse", mask=mask)
    return fields
