"""Lets one text token stand for many equal ones, exactly.

Stock diffusers fills the place of a missing T5 with 256 zero tokens. SD3's text tokens carry no positions, so equal
tokens stay equal through all layers, and n of them weigh in attention like one whose logit is raised by log n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class RepeatedTokenAttention:
    """diffusers' joint attention, with the last text token counted ``times`` times."""

    def __init__(self, times: int) -> None:
        self.raise_by = math.log(times)

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Any:
        batch, length, _width = hidden_states.shape
        heads = attn.heads

        def split(x: Tensor) -> Tensor:
            return x.view(batch, -1, heads, x.shape[-1] // heads).transpose(1, 2)

        image = [split(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v)]
        names = ("add_q_proj", "add_k_proj", "add_v_proj")
        text = [split(getattr(attn, name)(encoder_hidden_states)) for name in names]
        image[:2] = attn.norm_q(image[0]), attn.norm_k(image[1])
        text[:2] = attn.norm_added_q(text[0]), attn.norm_added_k(text[1])
        query, key, value = (torch.cat(pair, 2) for pair in zip(image, text, strict=True))
        bias = query.new_zeros(key.shape[2])
        bias[-1] = self.raise_by
        joined = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(query.shape[2], -1))
        joined = joined.transpose(1, 2).reshape(batch, -1, heads * joined.shape[-1]).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](joined[:, :length]))
        if attn.context_pre_only:
            return out, joined[:, length:]
        return out, attn.to_add_out(joined[:, length:])


@contextmanager
def repeat_last_token(transformer: Any, times: int) -> Iterator[None]:
    """Count the last text token ``times`` times inside the block; 0 or 1 changes nothing."""
    if times <= 1:
        yield
        return
    stock = dict(transformer.attn_processors)
    transformer.set_attn_processor(RepeatedTokenAttention(times))
    try:
        yield
    finally:
        transformer.set_attn_processor(stock)
