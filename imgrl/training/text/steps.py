"""What every trainer of ours does around a micro-batch's loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from imgrl.objectives.text.base import reduce
from imgrl.training.text.heads import Rows
from imgrl.training.text.sharding import is_sharded

__all__ = ["no_loss", "note", "refuse_outputs"]


def no_loss(model: Any, rows: Rows, score: Callable[[Rows], Mapping[str, Tensor]]) -> Tensor:
    """Zero with a graph, for a micro-batch without a loss token: other processes still wait for its backward pass.

    Where weights are sharded they wait for each forward pass as well, those of anchors included.

    Args:
        model: the policy, or its wrapper.
        rows: the micro-batch.
        score: what other micro-batches are scored by; it gives at least ``log_prob``.
    """
    first = rows.input_ids[:1, :1]
    if not is_sharded(model):
        return 0.0 * model(input_ids=first).logits.sum()
    twice = first.repeat(1, 2)
    fields = score(
        Rows(
            input_ids=twice,
            attention_mask=torch.ones_like(twice),
            tokens=first,
            mask=torch.ones_like(first, dtype=torch.bool),
        )
    )
    return 0.0 * fields["log_prob"].sum()


def refuse_outputs(return_outputs: bool) -> None:
    """TRL asks for outputs where it evaluates, which a session does by generating."""
    if return_outputs:
        raise NotImplementedError("This trainer evaluates by generating; it has no outputs to return.")


@torch.no_grad()
def note(log: MutableMapping[str, list[float]], metrics: Mapping[str, Tensor], mask: Tensor) -> None:
    """Append means over loss tokens, or of whatever else a metric speaks of, to TRL's log of a step."""
    for name, value in metrics.items():
        if not value.numel():  # of nothing in this micro-batch
            continue
        mean = reduce(value, mask, how="token") if value.ndim == 2 else value.mean()
        log[f"objective/{name}"].append(float(mean))
