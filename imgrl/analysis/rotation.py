"""Changing the basis of attention's values without changing what the network computes.

The causal control of 2511.08567: train from a base whose values and outputs are rotated, or whose heads are permuted,
and see whether the same weights are updated. As the module on nulls explains, agreement must drop in the edited
matrices even if nothing is learnt, because which stored weights change follows the map of |W|; so it is to be read
beside the magnitude-matched null. Weights are [out, in] as in ``nn.Linear``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from imgrl.errors import ConfigError

__all__ = ["head_rotations", "permute_heads", "rotate_attention", "rotate_values"]

# Value and output projections of one attention; those of text beside image share the head's rotation.
_PLACES = (("v_proj", "o_proj"), ("to_v", "to_out"), ("add_v_proj", "to_add_out"))


def head_rotations(
    heads: int, size: int, *, kind: Literal["haar", "hadamard"] = "haar", seed: int = 0
) -> Tensor:
    """Random orthogonal matrices, one for each head of keys and values, [heads, size, size] in float64.

    Args:
        heads: key/value heads.
        size: width of a head.
        kind: "haar" draws uniformly; "hadamard" a Hadamard matrix with random signs, which needs a power of two.
        seed: of the draw.

    Raises:
        ConfigError: if a Hadamard matrix of that size is not available.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "haar":
        q, r = torch.linalg.qr(torch.randn(heads, size, size, generator=generator, dtype=torch.float64))
        return q * r.diagonal(dim1=1, dim2=2).sign()[:, None, :]  # without the signs it is not uniform
    if size & (size - 1):
        raise ConfigError(f"a Hadamard rotation needs heads of a power of two, but they are {size} wide")
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / 2**0.5
    signs = torch.randint(0, 2, (heads, size, 1), generator=generator, dtype=torch.float64) * 2 - 1
    return signs * matrix


def rotate_values(
    value: Tensor, output: Tensor, rotations: Tensor, *, heads: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rotate each value head by R and undo it in the output projection: softmax weights act on tokens, not on R.

    Args:
        value: weight of the value projection [kv_heads * size, d].
        output: weight of the output projection [d, heads * size].
        rotations: one matrix a key/value head [kv_heads, size, size].
        heads: query heads; each group of heads / kv_heads of them reads one value head.
        bias: of the value projection [kv_heads * size].

    Returns:
        The three rotated, in their own precisions.

    Raises:
        ConfigError: if the sizes do not fit.
    """
    kv_heads, size, _ = rotations.shape
    if value.shape[0] != kv_heads * size or output.shape[1] != heads * size or heads % kv_heads:
        raise ConfigError(
            f"{heads} heads and {kv_heads} value heads of width {size} need a value weight of {kv_heads * size} rows "
            f"and an output weight of {heads * size} columns, but they are {list(value.shape)} and {list(output.shape)}"
        )
    into = torch.block_diag(*rotations.double())
    back = torch.block_diag(*rotations.double().repeat_interleave(heads // kv_heads, 0))
    turned = None if bias is None else (into.T @ bias.double()).to(bias.dtype)
    return (into.T @ value.double()).to(value.dtype), (output.double() @ back).to(output.dtype), turned


def permute_heads(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, order: Tensor, *, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reorder attention heads in all four projections; queries follow the key/value head they read.

    Biases go as matrices of one column through ``query``, ``key`` and ``value``.

    Args:
        query: [heads * size, d].
        key: [kv_heads * size, d].
        value: [kv_heads * size, d].
        output: [d, heads * size].
        order: a permutation of the key/value heads [kv_heads].
        heads: query heads.
    """
    kv_heads = len(order)

    def rows(weight: Tensor) -> Tensor:
        return weight.unflatten(0, (kv_heads, -1))[order].flatten(0, 1)

    if heads % kv_heads or query.shape[0] % heads or output.shape[1] != query.shape[0]:
        raise ConfigError(f"{heads} heads cannot be permuted by an order of {kv_heads} key/value heads")
    return rows(query), rows(key), rows(value), rows(output.T).T.contiguous()


@torch.no_grad()
def rotate_attention(
    model: nn.Module,
    *,
    heads: int,
    kv_heads: int | None = None,
    seed: int = 0,
    kind: Literal["haar", "hadamard"] = "haar",
) -> list[str]:
    """Rotate the values of every attention of a model in place; its outputs stay equal up to rounding.

    For layers named as transformers' Llama and Qwen or diffusers' SD3 name them.

    Args:
        model: changed in place; save it and train from it.
        heads: query heads.
        kv_heads: key/value heads; None is as many as heads.
        seed: of the rotations, which differ between layers.
        kind: see :func:`head_rotations`.

    Returns:
        Names of the changed weights.

    Raises:
        ConfigError: if there is no such attention, or the sizes do not fit.
    """
    edited: list[str] = []
    groups = kv_heads or heads
    for number, (path, part) in enumerate(list(model.named_modules())):
        if not any(_linear(part, value) and _linear(part, output) for value, output in _PLACES[:2]):
            continue
        pairs = [pair for pair in _PLACES if _linear(part, pair[0])]
        size = _linear(part, pairs[0][0]).weight.shape[0] // groups
        rotations = head_rotations(groups, size, kind=kind, seed=seed * 1_000_003 + number)
        edited += [f"{path}.{name}" for pair in pairs for name in _rotate(part, pair, rotations, heads)]
    if not edited:
        raise ConfigError("the model has no attention with layers v_proj and o_proj, or to_v and to_out")
    return edited


def _rotate(part: nn.Module, pair: tuple[str, str], rotations: Tensor, heads: int) -> list[str]:
    value, output = (_linear(part, name) for name in pair)
    # SD3's last block reads the values of text but puts out none.
    back = value.weight.new_zeros(0, heads * rotations.shape[1]) if output is None else output.weight
    turned, back, bias = rotate_values(value.weight, back, rotations, heads=heads, bias=value.bias)
    value.weight.copy_(turned)
    if bias is not None:
        value.bias.copy_(bias)
    if output is None:
        return [f"{pair[0]}.weight"]
    output.weight.copy_(back)
    return [f"{pair[0]}.weight", f"{pair[1]}{'.0' * (pair[1] == 'to_out')}.weight"]


def _linear(part: nn.Module, name: str) -> Any:
    """The layer of that name; diffusers puts the output projection into a list with its dropout."""
    found = getattr(part, name, None)
    found = found[0] if isinstance(found, nn.ModuleList) and len(found) else found
    return found if isinstance(found, nn.Linear) else None
