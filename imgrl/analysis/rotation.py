"""Changing the basis of attention's values without changing what the network computes.

The causal control of 2511.08567: train from a base whose values and outputs are rotated, or whose heads are permuted,
and see whether the same weights are updated. As the module on nulls explains, agreement must drop in the edited
matrices even if nothing is learnt, because which stored weights change follows the map of |W|; so it is to be read
beside the magnitude-matched null. Weights are [out, in] as in ``nn.Linear``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from imgrl.errors import ConfigError

__all__ = ["head_rotations", "permute_heads", "rotate_values"]


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
