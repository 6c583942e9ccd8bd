"""Completions that are sampled and judged, such as those that vote, and not trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["trained", "without_mere_votes"]

_WIDE = ("completion_ids", "completion_mask", "tool_mask", "sampling_per_token_logps")
"""Entries of a rollout with a column a token of the completion, padded at the end."""


def trained(count: int, *, sampled: int, kept: int) -> Tensor:
    """Bool [count]: the first ``kept`` of each ``sampled`` neighbours."""
    return torch.arange(count) % sampled < kept


def without_mere_votes(output: dict[str, Any], keep: Tensor) -> dict[str, Any]:
    """TRL's rollout less the rows that are not kept, as wide as the longest completion of those that are."""
    keep = keep.to(output["completion_mask"].device)
    rows = {k: v[keep] for k, v in output.items() if isinstance(v, Tensor) and v.ndim and len(v) == len(keep)}
    used = rows["completion_mask"].any(0).nonzero()
    width = int(used.max()) + 1 if len(used) else 1
    return output | rows | {name: rows[name][:, :width] for name in _WIDE if name in rows}
