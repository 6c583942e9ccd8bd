"""A map over token positions, a chunk at a time, whose backward pass computes every chunk again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Formula", "Index", "Reader", "accumulator", "chunked", "head_in_use", "pick"]

Index = tuple[Tensor, Tensor]
"""Sequence and position of every token of a chunk."""

Reader = Callable[[Index], Tensor]
"""Gives a model's logits [c, v] at the positions of a chunk."""

Formula = Callable[[Tensor, Index, Sequence[int]], Sequence[Tensor]]
"""(logits [c, v], their index, numbers of the outputs wanted) -> those outputs, each [c]."""


def pick(source: Tensor, weight: Tensor | None, bias: Tensor | None, index: Index) -> Tensor:
    """Logits [c, v] at an index: rows of ``source``, or the product of those rows with an output matrix."""
    rows = source[index]  # unlike a reshape, this copies no more than the chunk of a sliced source
    return rows if weight is None else F.linear(rows.to(weight.dtype), weight, bias)


def head_in_use(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Output matrix and bias in the precision a linear layer would multiply in, here and now."""
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        weight = weight.to(torch.get_autocast_dtype(kind))
    return weight, None if bias is None else bias.to(weight.dtype)


def chunked(
    formula: Formula,
    chunks: Sequence[Index],
    source: Tensor,
    *,
    outputs: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """``outputs`` tensors [n, t], 0 where no chunk points, differentiable in ``source``, ``weight``, ``bias``.

    Saved for the backward pass are the arguments and nothing else. ``source`` is [n, t, v] logits, or [n, t, h]
    hidden states with ``weight`` [v, h] and ``bias`` [v]. Under autocast the product with ``weight`` runs in
    autocast's precision, as a linear layer's would; gradients of ``weight`` add up in float32.
    """
    if weight is not None:
        weight, bias = head_in_use(weight, bias)
    return _Chunked.apply(formula, chunks, outputs, source, weight, bias)  # pyright: ignore


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        formula: Formula,
        chunks: Sequence[Index],
        outputs: int,
        source: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.formula, ctx.chunks = formula, chunks
        ctx.save_for_backward(source, weight, bias)
        ctx.set_materialize_grads(False)  # an output that only the log reads costs nothing on the way back
        dtype = torch.promote_types(source.dtype, torch.float32)
        totals = [source.new_zeros(source.shape[:2], dtype=dtype) for _ in range(outputs)]
        with torch.autocast(source.device.type, enabled=False):
            for index in chunks:
                values = formula(pick(source, weight, bias, index), index, range(outputs))
                for total, value in zip(totals, values, strict=True):
                    total[index] = value.to(dtype)
        return tuple(totals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        source, weight, bias = ctx.saved_tensors
        used = [number for number, grad in enumerate(grads) if grad is not None]
        given = [grad for grad in grads if grad is not None]
        wanted = ctx.needs_input_grad[3:]
        d_source = torch.zeros_like(source) if wanted[0] else None
        d_weight = accumulator(weight) if wanted[1] else None
        d_bias = accumulator(bias) if wanted[2] else None
        with torch.autocast(source.device.type, enabled=False):
            for index in ctx.chunks if used else ():
                logits = pick(source, weight, bias, index).requires_grad_()
                with torch.enable_grad():
                    values = ctx.formula(logits, index, used)
                heads = [grad[index].to(value.dtype) for grad, value in zip(given, values, strict=True)]
                (d_logits,) = torch.autograd.grad(values, logits, heads)
                if d_source is not None:
                    d_source[index] = (d_logits if weight is None else d_logits @ weight).to(source.dtype)
                if d_weight is not None:
                    d_weight.addmm_(d_logits.T.to(d_weight.dtype), source[index].to(d_weight.dtype))
                if d_bias is not None:
                    d_bias += d_logits.sum(0, dtype=d_bias.dtype)
        d_weight = None if d_weight is None or weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None or bias is None else d_bias.to(bias.dtype)
        return None, None, None, d_source, d_weight, d_bias


def accumulator(like: Tensor) -> Tensor:
    """Zeros in float32 or better: sums of many chunks in half precision lose the small ones."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
