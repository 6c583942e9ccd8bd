"""One chunk of positions: which statistics of a distribution over a vocabulary, and of which positions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from imgrl.anchor import categorical_kl
from imgrl.flow.conventions import full_precision
from imgrl.objectives.text.chunked import Formula, Index, Reader

__all__ = [
    "CHUNK_LOGITS",
    "CHUNK_LOGITS_ELSEWHERE",
    "LEAST_ROWS",
    "Want",
    "chunk_logits",
    "formula_of",
    "plan",
]

Want = Literal["log_prob", "entropy", "forward_kl", "reverse_kl", "log_partition"]
"""Fields of a ``TextBatch``, and the logarithm of the sum of exponentiated logits."""

CHUNK_LOGITS = {"cpu": 2**20}
"""Logits in a chunk where the caller names no size, by device: on a CPU so few that they stay in its cache."""

CHUNK_LOGITS_ELSEWHERE = 2**24
"""Elsewhere 64 MiB in float32, enough to fill an accelerator."""

LEAST_ROWS = 32
"""Positions in a chunk at least, where its logits are a product: thinner ones take twice as long at 128k logits."""


def chunk_logits(device: torch.device) -> int:
    """Logits that should exist at a time on a device."""
    return CHUNK_LOGITS.get(device.type, CHUNK_LOGITS_ELSEWHERE)


def formula_of(names: Sequence[Want], ids: Tensor, anchor: Reader | None, temperature: float) -> Formula:
    """What is computed of the logits [c, v] of a chunk; the anchor's come without gradient."""

    def tempered(logits: Tensor) -> Tensor:
        return full_precision(logits) if temperature == 1 else full_precision(logits) / temperature

    def formula(logits: Tensor, index: Index, numbers: Sequence[int]) -> list[Tensor]:
        wanted: list[Want] = [names[number] for number in numbers]
        logits = tempered(logits)
        values: dict[Want, Tensor] = {}
        if "log_partition" in wanted:
            values["log_partition"] = logits.logsumexp(-1)
        if "log_prob" in wanted or "entropy" in wanted:
            logits = logits.log_softmax(-1)  # also what the KLs may start from
        if "log_prob" in wanted:
            values["log_prob"] = logits.gather(-1, ids[index][:, None])[:, 0]
        if "entropy" in wanted:
            values["entropy"] = -(logits.exp() * logits).sum(-1)
        if anchor is not None and not {"forward_kl", "reverse_kl"}.isdisjoint(wanted):
            with torch.no_grad():
                base = tempered(anchor(index))
            if "forward_kl" in wanted:
                values["forward_kl"] = categorical_kl(logits, base, direction="forward")
            if "reverse_kl" in wanted:
                values["reverse_kl"] = categorical_kl(logits, base, direction="reverse")
        return [values[name] for name in wanted]

    return formula


def plan(
    want: Collection[Want],
    anchored: bool,
    ids: Tensor,
    mask: Tensor | None,
    vocabulary: int,
    temperature: float,
    chunk: int | None,
    least: int = 1,
) -> tuple[list[Want], list[Index]]:
    """The names in a fixed order, and the positions to compute, chunk by chunk."""
    names: list[Want] = sorted(set(want))
    if unknown := set(names) - set(get_args(Want)):
        raise ValueError(
            f"Unknown token statistics {sorted(unknown)}; choose among {', '.join(get_args(Want))}."
        )
    if not anchored and any(name.endswith("_kl") for name in names):
        raise ValueError(f"Expected an anchor's logits or hidden states for {names}, got none; pass them.")
    if not temperature > 0 or (chunk is not None and chunk < 1):
        raise ValueError(f"Expected temperature > 0 and chunk >= 1, got {temperature} and {chunk}.")
    rows, columns = (torch.ones_like(ids) if mask is None else mask).nonzero(as_tuple=True)
    read = ids[rows, columns]
    if len(read) and not 0 <= int(read.min()) <= int(read.max()) < vocabulary:
        raise ValueError(
            f"Expected tokens in [0, {vocabulary}), got {int(read.min())} to {int(read.max())}; mask what is no token."
        )
    size = chunk or max(least, chunk_logits(ids.device) // vocabulary)
    return names, list(zip(torch.split(rows, size), torch.split(columns, size), strict=True))
