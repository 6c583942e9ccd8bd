"""Statistics of tokens from hidden states whose logits exist a block of the vocabulary at a time.

What needs one distribution alone (its logarithm at a token, its entropy, its log-partition) can be summed over blocks
of the vocabulary, and so can its gradient: no row of logits is ever whole, and memory beyond the arguments and their
gradients does not depend on the vocabulary. The sums are those of the online softmax (Milakov and Gimelshein, 2018,
Algorithm 3); Cut Cross-Entropy (Wijmans et al., 2025) is the same for one of them, as a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imgrl.flow.conventions import full_precision
from imgrl.objectives.text.chunked import Index, accumulator, head_in_use
from imgrl.objectives.text.vocabulary import Want, chunk_logits

__all__ = ["BLOCKWISE", "Blocks", "blocks_of", "blockwise"]

BLOCKWISE: frozenset[Want] = frozenset({"log_prob", "entropy", "log_partition"})
"""What is computed here; a divergence needs two distributions at once."""

_ROWS = {"cpu": 512}
_ROWS_ELSEWHERE = 2048
"""Positions in a block where the caller names no number: a product of about as many rows as columns is fast."""


@dataclass(frozen=True)
class Blocks:
    """How many logits exist at a time."""

    rows: int
    """Positions."""
    columns: int
    """Tokens of the vocabulary."""


def blocks_of(device: torch.device, rows: int | None) -> Blocks:
    """What suits a device, with as many rows as the caller wants."""
    rows = rows or _ROWS.get(device.type, _ROWS_ELSEWHERE)
    return Blocks(rows, max(1, chunk_logits(device) // rows))


def blockwise(
    names: Sequence[Want],
    chunks: Sequence[Index],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    *,
    temperature: float,
    columns: int,
) -> tuple[Tensor, ...]:
    """``names`` of each token, [n, t] each, 0 where no chunk points; differentiable in ``hidden, weight, bias``.

    Args:
        names: among :data:`BLOCKWISE`.
        chunks: positions whose logits are made together.
        hidden: [n, t, h]
        weight: [v, h]; under autocast it multiplies in autocast's precision, as a linear layer's would. Its gradient
            adds up in float32.
        bias: [v]
        ids: [n, t]
        temperature: divides the logits.
        columns: tokens of the vocabulary in a block.
    """
    weight, bias = head_in_use(weight, bias)
    return _Blockwise.apply(tuple(names), chunks, temperature, columns, ids, hidden, weight, bias)  # pyright: ignore


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        names: tuple[Want, ...],
        chunks: Sequence[Index],
        temperature: float,
        columns: int,
        ids: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, ...]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        found = {name: hidden.new_zeros(ids.shape, dtype=dtype) for name in sorted(BLOCKWISE)}
        with torch.autocast(hidden.device.type, enabled=False):
            for index in chunks:
                own = _Sums(ids[index], hidden.new_zeros((), dtype=dtype))
                for start, logits in _blocks(hidden[index], weight, bias, temperature, columns):
                    own.add(start, logits)
                for name, value in own.statistics().items():
                    found[name][index] = value
        ctx.names, ctx.chunks, ctx.temperature, ctx.columns = names, chunks, temperature, columns
        ctx.save_for_backward(ids, hidden, weight, bias, found["log_partition"], found["entropy"])
        ctx.set_materialize_grads(False)  # an output that only the log reads costs nothing on the way back
        return tuple(found[name].clone() for name in names)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ids, hidden, weight, bias, partition, entropy = ctx.saved_tensors
        given = {name: grad for name, grad in zip(ctx.names, grads, strict=True) if grad is not None}
        wanted = ctx.needs_input_grad[5:]
        d_hidden = torch.zeros_like(hidden) if wanted[0] else None
        d_weight = accumulator(weight) if wanted[1] else None
        d_bias = accumulator(bias) if wanted[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for index in ctx.chunks if given else ():
                rows, own = hidden[index], {name: grad[index] for name, grad in given.items()}
                d_rows = torch.zeros_like(rows, dtype=torch.promote_types(rows.dtype, torch.float32))
                for start, logits in _blocks(rows, weight, bias, ctx.temperature, ctx.columns):
                    part = slice(start, start + logits.shape[-1])
                    d_logits = _gradient(start, logits, ids[index], partition[index], entropy[index], own)
                    d_logits = (d_logits / ctx.temperature).to(weight.dtype)
                    if d_hidden is not None:
                        d_rows += d_logits @ weight[part]
                    if d_weight is not None:
                        d_weight[part].addmm_(d_logits.T.to(d_weight.dtype), rows.to(d_weight.dtype))
                    if d_bias is not None:
                        d_bias[part] += d_logits.sum(0, dtype=d_bias.dtype)
                if d_hidden is not None:
                    d_hidden[index] = d_rows.to(hidden.dtype)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None else d_bias.to(bias.dtype)
        return None, None, None, None, None, d_hidden, d_weight, d_bias


def _blocks(
    rows: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, columns: int
) -> Iterator[tuple[int, Tensor]]:
    """The first token of each block, and its logits [c, columns] over the temperature, float32 or better."""
    rows = rows.to(weight.dtype)
    for start in range(0, len(weight), columns):
        part = slice(start, start + columns)
        logits = full_precision(F.linear(rows, weight[part], None if bias is None else bias[part]))
        yield start, logits if temperature == 1 else logits / temperature


class _Sums:
    """What has been seen of the distributions of a chunk, block after block; nothing overflows."""

    def __init__(self, ids: Tensor, zero: Tensor) -> None:
        self.ids = ids
        self.top = zero.new_full(ids.shape, -torch.inf)
        self.mass, self.slope, self.picked = (zero.expand(ids.shape) for _ in range(3))

    def add(self, start: int, logits: Tensor) -> None:
        """A block's part of the sums of exp(z - top) and of (z - top) exp(z - top)."""
        top = torch.maximum(self.top, logits.amax(-1))
        fall = torch.where(self.mass > 0, self.top - top, 0.0)  # nothing was there before the first block
        below = logits - top[:, None]
        share = below.exp()
        self.slope = fall.exp() * (self.slope + fall * self.mass) + (share * below).sum(-1)
        self.mass = fall.exp() * self.mass + share.sum(-1)
        self.top = top
        inside, column = _place(self.ids, start, logits)
        self.picked = torch.where(inside, logits.gather(-1, column[:, None])[:, 0], self.picked)

    def statistics(self) -> dict[Want, Tensor]:
        """Once all blocks were added."""
        depth = self.mass.log()
        partition = self.top + depth
        return {
            "log_prob": self.picked - partition,
            "entropy": depth - self.slope / self.mass,
            "log_partition": partition,
        }


def _place(ids: Tensor, start: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each token is in a block, and in which of its columns; any where it is not."""
    column = ids - start
    width = logits.shape[-1]
    return (column >= 0) & (column < width), column.clamp(0, width - 1)


def _gradient(
    start: int,
    logits: Tensor,
    ids: Tensor,
    partition: Tensor,
    entropy: Tensor,
    grads: dict[Want, Tensor],
) -> Tensor:
    """What a block of logits z receives from the gradients of the statistics.

    With p = exp(z - log Z) and entropy H: d log Z = p dz, d log p(token) = dz(token) - p dz, dH = -p (log p + H) dz.
    """
    log_share = logits - partition[:, None]
    factor = torch.zeros_like(partition)
    if "log_partition" in grads:
        factor = factor + grads["log_partition"]
    if "log_prob" in grads:
        factor = factor - grads["log_prob"]
    total = factor[:, None]
    if "entropy" in grads:
        total = total - grads["entropy"][:, None] * (log_share + entropy[:, None])
    d_logits = log_share.exp() * total
    if "log_prob" in grads:
        inside, column = _place(ids, start, logits)
        own = torch.where(inside, grads["log_prob"], 0.0).to(d_logits.dtype)
        d_logits.scatter_add_(-1, column[:, None], own[:, None])
    return d_logits
