"""What distributions over a vocabulary say of each token, without a second tensor as large as the logits.

A chunk of positions at a time is brought to float32, reduced to a number per position and dropped; the backward
pass computes the chunk again. What remains is the logits, which the caller made, and their gradient; from hidden
states not even those are ever whole: memory then grows with the vocabulary by the output matrix and one chunk.

Shapes: ``n`` sequences, ``t`` positions, ``v`` vocabulary, ``h`` width. ``logits[i, j]`` must already predict
``ids[i, j]``. Cutting the last position off the logits costs autograd a copy; move the ids and mask 0 there.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imgrl.flow.conventions import require_same_shape
from imgrl.objectives.text.blocked import BLOCKWISE, blocks_of, blockwise
from imgrl.objectives.text.chunked import Reader, chunked, head_in_use, pick
from imgrl.objectives.text.vocabulary import LEAST_ROWS, Want, formula_of, plan

__all__ = ["Want", "head_statistics", "token_entropy", "token_kl", "token_log_probs", "token_statistics"]


def token_statistics(
    logits: Float[Tensor, " n t v"],
    ids: Int[Tensor, " n t"],
    *,
    want: Collection[Want],
    mask: Float[Tensor, " n t"] | None = None,
    anchor_logits: Float[Tensor, " n t v"] | None = None,
    anchor_at: Reader | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> dict[str, Float[Tensor, " n t"]]:
    """Everything wanted of each token in one pass, in nats, float32 or better, live.

    Args:
        logits: of the live policy, any precision.
        ids: the token each position predicts; anything (such as -100) where the mask is 0.
        want: ``log_prob`` of the token, ``entropy``, ``forward_kl`` KL(anchor || policy), ``reverse_kl``
            KL(policy || anchor), ``log_partition``.
        mask: positions with 0 are not computed: their values are 0 and have no gradient.
        anchor_logits: needed for the two KLs; never receive a gradient.
        anchor_at: or the anchor's logits [c, v] at the positions of a chunk, where no whole tensor of them exists.
        temperature: divides the logits of both.
        chunk: positions computed at a time, without influence on the result; None takes what suits the device.

    Raises:
        ValueError: an unknown name, a KL without an anchor, shapes that differ, or a token outside the vocabulary.
    """
    _one_anchor(anchor_logits, anchor_at)
    if anchor_logits is not None:
        require_same_shape(logits=logits, anchor_logits=anchor_logits)
        anchor_at = partial(pick, anchor_logits, None, None)
    names, chunks = plan(want, anchor_at is not None, ids, mask, logits.shape[-1], temperature, chunk)
    formula = formula_of(names, ids, anchor_at, temperature)
    return dict(zip(names, chunked(formula, chunks, logits, outputs=len(names)), strict=True))


def head_statistics(
    hidden: Float[Tensor, " n t h"],
    weight: Float[Tensor, " v h"],
    ids: Int[Tensor, " n t"],
    *,
    want: Collection[Want],
    bias: Float[Tensor, " v"] | None = None,
    mask: Float[Tensor, " n t"] | None = None,
    anchor_hidden: Float[Tensor, " n t h_anchor"] | None = None,
    anchor_weight: Float[Tensor, " v h_anchor"] | None = None,
    anchor_bias: Float[Tensor, " v"] | None = None,
    anchor_at: Reader | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    whole: bool = False,
) -> dict[str, Float[Tensor, " n t"]]:
    """``token_statistics`` of ``hidden @ weight.T + bias``, whose logits exist a chunk at a time.

    Where no KL is wanted, only a block of the vocabulary exists at a time (:mod:`imgrl.objectives.text.blocked`), and
    ``chunk`` is how many positions share one. ``whole`` makes whole rows of logits there, too, so that numbers which
    are compared with those of a call that wants a KL are rounded alike.

    For models whose logits are exactly that product; those that cap or scale it need ``token_statistics``. Without
    ``anchor_weight`` the anchor uses the policy's ``weight`` and ``bias``, which must not be trained then (an adapter
    that leaves the output matrix alone): an anchor that moves with the policy would not hold it.

    Raises:
        ValueError: as ``token_statistics``, or a trained output matrix stands in for the anchor's.
    """
    _one_anchor(anchor_hidden, anchor_at)
    if anchor_weight is None:
        if anchor_hidden is not None and weight.requires_grad:
            raise ValueError(
                "Expected anchor_weight, since the policy's own is trained; pass the frozen model's output matrix."
            )
        anchor_weight, anchor_bias = weight, bias
    if BLOCKWISE.issuperset(want) and not whole:
        blocks = blocks_of(ids.device, chunk)
        names, chunks = plan(want, False, ids, mask, len(weight), temperature, blocks.rows)
        values = blockwise(
            names, chunks, hidden, weight, bias, ids, temperature=temperature, columns=blocks.columns
        )
        return dict(zip(names, values, strict=True))
    head, offset = head_in_use(anchor_weight, anchor_bias)
    if anchor_hidden is not None:
        anchor_at = partial(pick, anchor_hidden, head, offset)
    names, chunks = plan(want, anchor_at is not None, ids, mask, len(weight), temperature, chunk, LEAST_ROWS)
    formula = formula_of(names, ids, anchor_at, temperature)
    values = chunked(formula, chunks, hidden, outputs=len(names), weight=weight, bias=bias)
    return dict(zip(names, values, strict=True))


def _one_anchor(tensor: Tensor | None, reader: Reader | None) -> None:
    if tensor is not None and reader is not None:
        raise ValueError("Expected the anchor as a tensor or by anchor_at, got both; leave one of them out.")


def token_log_probs(
    logits: Float[Tensor, " n t v"],
    ids: Int[Tensor, " n t"],
    *,
    mask: Float[Tensor, " n t"] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Tensor, " n t"]:
    """Log-probability of each token; see ``token_statistics``."""
    values = token_statistics(logits, ids, want=["log_prob"], mask=mask, temperature=temperature, chunk=chunk)
    return values["log_prob"]


def token_entropy(
    logits: Float[Tensor, " n t v"],
    *,
    mask: Float[Tensor, " n t"] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Tensor, " n t"]:
    """Entropy of each position's distribution; see ``token_statistics``."""
    ids = logits.new_zeros(logits.shape[:2], dtype=torch.long)
    return token_statistics(logits, ids, want=["entropy"], mask=mask, temperature=temperature, chunk=chunk)[
        "entropy"
    ]


def token_kl(
    logits: Float[Tensor, " n t v"],
    anchor_logits: Float[Tensor, " n t v"],
    *,
    direction: Literal["forward", "reverse"],
    mask: Float[Tensor, " n t"] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Tensor, " n t"]:
    """Exact KL(anchor || policy), ``forward``, or KL(policy || anchor), ``reverse``; see ``token_statistics``."""
    if direction not in ("forward", "reverse"):
        raise ValueError(f"Unknown KL direction {direction!r}; choose 'forward' or 'reverse'.")
    ids = logits.new_zeros(logits.shape[:2], dtype=torch.long)
    name: Want = "forward_kl" if direction == "forward" else "reverse_kl"
    values = token_statistics(
        logits,
        ids,
        want=[name],
        mask=mask,
        anchor_logits=anchor_logits,
        temperature=temperature,
        chunk=chunk,
    )
    return values[name]
