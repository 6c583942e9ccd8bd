"""Lets one text token stand for many equal ones, exactly.

Stock diffusers fills the place of a missing T5 with 256 zero tokens. SD3's text tokens carry no positions, so equal
tokens stay equal through all layers, and n of them weigh in attention like one whose logit is raised by log n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FoldedAttention", "Repeats", "fold", "install", "unfold"]

_FEW = 256  # tokens up to which all attention weights may be in memory at once


@dataclass
class Repeats:
    """How often the last text token counts in the forward at hand; shared by all layers of a network."""

    count: int = 1


def fold(embeds: Tensor) -> tuple[Tensor, int]:
    """Cut all but one of the trailing zero tokens of one prompt [L, D]; returns (tokens, times the last one counts)."""
    filled = torch.nonzero(embeds.ne(0).any(-1)).flatten()
    zeros = len(embeds) - (int(filled[-1]) + 1 if len(filled) else 0)
    return (embeds, 1) if zeros < 2 else (embeds[: len(embeds) - zeros + 1], zeros)


def unfold(embeds: Tensor, count: int) -> Tensor:
    """Undo :func:`fold` for a batch [n, L, D]."""
    return torch.cat([embeds, embeds[:, -1:].expand(-1, count - 1, -1)], 1)


def install(transformer: Any) -> Repeats:
    """Give every joint attention of an SD3 transformer a processor that can count its last text token many times."""
    repeats = Repeats()
    stock = transformer.attn_processors
    transformer.set_attn_processor({name: FoldedAttention(own, repeats) for name, own in stock.items()})
    return repeats


class FoldedAttention:
    """diffusers' joint attention with the last text token counted ``repeats.count`` times; the stock one at 1."""

    def __init__(self, stock: Any, repeats: Repeats) -> None:
        self.stock, self.repeats = stock, repeats

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **options: Any
    ) -> Any:
        """Attend; same arguments and results as diffusers' JointAttnProcessor2_0."""
        if self.repeats.count == 1 or encoder_hidden_states is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, **options)
        image = _project(attn, hidden_states, ("to_q", "to_k", "to_v"), (attn.norm_q, attn.norm_k))
        names = ("add_q_proj", "add_k_proj", "add_v_proj")
        text = _project(attn, encoder_hidden_states, names, (attn.norm_added_q, attn.norm_added_k))
        query, key, value = (torch.cat(pair, 2) for pair in zip(image, text, strict=True))
        bias = query.new_zeros(key.shape[2])
        bias[-1] = math.log(self.repeats.count)
        joined = _attend(query, key, value, bias)
        joined = joined.transpose(1, 2).flatten(2).to(query.dtype)
        length = hidden_states.shape[1]
        out = attn.to_out[1](attn.to_out[0](joined[:, :length]))
        rest = joined[:, length:]
        return out, rest if attn.context_pre_only else attn.to_add_out(rest)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention [n, heads, L, d] with ``bias`` [keys] on the logits.

    A CPU's fused kernels are slow for few tokens: plain products took 0.32 s where they took 0.53 (forward and
    backward of 144 images of the bundled model, two cores, bfloat16).
    """
    if query.device.type != "cpu" or key.shape[2] > _FEW:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(query.shape[2], -1))
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias
    return logits.softmax(-1).to(value.dtype) @ value


def _project(attn: Any, tokens: Tensor, names: tuple[str, ...], norms: tuple[Any, Any]) -> list[Tensor]:
    """Query, key and value [n, heads, L, d] of some tokens, the first two normalised where the model does so."""
    parts = []
    for name, norm in zip(names, (*norms, None), strict=True):
        heads = getattr(attn, name)(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        parts.append(heads if norm is None else norm(heads))
    return parts
