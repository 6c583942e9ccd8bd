"""Sparse fine-tuning: which weights may train, chosen from the weights before training, and a hook that keeps to it.

masks = training_masks(model.parameters(), "safe")
sparse = MaskedUpdate(optimizer, masks)
...  # train as ever: frozen entries keep their bits
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from imgrl.analysis.spectrum import decompose, principal_rows
from imgrl.analysis.update import LEVELS, Threshold, levels, low_level
from imgrl.analysis.weights import as_matrix, blocks
from imgrl.errors import ConfigError

__all__ = ["MaskKind", "MaskedUpdate", "low", "principal", "training_mask", "training_masks"]

MaskKind = Literal["low", "not_principal", "safe", "random"]
Weight = TypeVar("Weight", bound=Tensor)


def low(weight: Tensor, alpha: float) -> Tensor:
    """The smallest alpha of |W| as bfloat16 stores it, ties included: a boolean mask of the weight's shape."""
    level = levels(weight.detach()).long()
    return level <= low_level(torch.bincount(level.flatten().cpu(), minlength=LEVELS), alpha)


def principal(weight: Tensor, k: int, alpha: float, *, exact: bool | None = None, seed: int = 0) -> Tensor:
    """The largest alpha of |W^(k)|, the rank-k part of the weight: a boolean mask of its shape.

    Args:
        weight: a matrix, or a convolution's kernel, which counts as [out, the rest].
        k: directions, clipped to the rank.
        alpha: fraction of the weights.
        exact: see :func:`imgrl.analysis.spectrum.decompose`.
        seed: see there.
    """
    matrix = as_matrix(weight.detach().cpu())
    top = decompose(matrix, k, exact=exact, seed=seed)
    ranges = list(blocks(matrix.shape))
    limit = Threshold(lambda: (principal_rows(top, a, b) for a, b in ranges)).largest(
        round(alpha * matrix.parameters)
    )
    mask = torch.cat([principal_rows(top, a, b) >= limit for a, b in ranges])
    return mask.reshape(weight.shape).to(weight.device)


def training_mask(
    weight: Tensor,
    kind: MaskKind,
    *,
    k: int = 64,
    alpha: float = 0.5,
    alpha_low: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Entries of one matrix that may train, from its weights before training (2511.08567, section 5).

    Args:
        weight: W0, a matrix or a convolution's kernel.
        kind: "low" the small weights; "not_principal" those outside the principal mask; "safe" either of the two;
            "random" as many as "safe", anywhere.
        k: principal directions; the paper does not state its number.
        alpha: fraction in the principal mask; the paper trains with 0.5.
        alpha_low: fraction in the low mask; None takes ``alpha``.
        seed: of the random mask.

    Returns:
        A boolean mask of the weight's shape, True where it may train.

    Raises:
        ConfigError: if there is no such kind.
    """
    if kind not in get_args(MaskKind):
        raise ConfigError(f"a mask must be one of {', '.join(get_args(MaskKind))}, but {kind!r} was given")
    if kind == "low":
        return low(weight, alpha if alpha_low is None else alpha_low)
    outside = ~principal(weight, k, alpha)
    if kind == "not_principal":
        return outside
    safe = outside | low(weight, alpha if alpha_low is None else alpha_low)
    if kind == "safe":
        return safe
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed)).to(weight.device)
    chosen = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    chosen[order[: int(safe.sum())]] = True
    return chosen.reshape(weight.shape)


def training_masks(
    weights: Iterable[Weight], kind: MaskKind, *, seed: int = 0, **options: Any
) -> dict[Weight, Tensor]:
    """Masks of every matrix; vectors train as a whole and have none.

    Args:
        weights: what trains, or under a LoRA what it is added to.
        kind: see :func:`training_mask`.
        seed: of random masks, which differ between matrices.
        options: see :func:`training_mask`.
    """
    return {
        weight: training_mask(weight, kind, seed=seed + number, **options)
        for number, weight in enumerate(weights)
        if weight.ndim > 1 and min(weight.flatten(1).shape) > 1
    }


class MaskedUpdate:
    """Keeps the masked-out entries of parameters as they are, bit for bit, whatever the optimiser does.

    Gradients are masked as soon as they are there, so that clipping by norm sees trained entries only, and the frozen
    entries are put back after every step, which undoes weight decay exactly. Costs the memory of the frozen entries.

    Give it torch's own optimiser, not a library's wrapper around it, since only that one's steps are seen. Made after
    a checkpoint is loaded, it keeps the checkpoint's frozen entries, which are those from before training.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, masks: Mapping[nn.Parameter, Tensor]) -> None:
        for parameter, mask in masks.items():
            if mask.shape != parameter.shape or mask.dtype != torch.bool:
                raise ConfigError(
                    f"a mask must be boolean and of its parameter's shape {list(parameter.shape)}, but it is "
                    f"{mask.dtype} {list(mask.shape)}"
                )
        self._frozen = {parameter: ~mask for parameter, mask in masks.items()}
        self._kept = {parameter: parameter.detach()[frozen] for parameter, frozen in self._frozen.items()}
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._mask_gradients()),
            optimizer.register_step_post_hook(lambda *_: self._restore()),
            *(p.register_post_accumulate_grad_hook(self._mask_gradient) for p in masks if p.requires_grad),
        ]

    def remove(self) -> None:
        """Let every entry train again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _mask_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            # Not a product with the mask: a NaN there would stay one.
            parameter.grad.masked_fill_(self._frozen[parameter], 0)  # pyright: ignore[reportArgumentType]

    def _mask_gradients(self) -> None:
        for parameter in self._frozen:
            self._mask_gradient(parameter)

    @torch.no_grad()
    def _restore(self) -> None:
        for parameter, frozen in self._frozen.items():
            parameter.masked_scatter_(frozen, self._kept[parameter])
