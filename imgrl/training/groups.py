"""Rewards to advantages: how much better than its group an image did, in standard deviations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Advantages", "group_advantages"]


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """What a round's rewards say, row by row, and which groups say nothing."""

    advantage: Tensor
    """float64 [n]; 0 where not valid."""
    valid: Tensor
    """bool [n]: False for masked rows and for rows of dropped groups; leave these out of the loss."""
    zero_variance_groups: tuple[int, ...]
    """Groups whose images all scored alike: they carry no policy gradient."""
    dropped_groups: tuple[int, ...]
    """Groups with fewer than two valid images: nothing to compare."""


def group_advantages(
    rewards: Tensor | Mapping[str, Tensor],
    group: Tensor,
    *,
    std: Literal["global", "group"] = "global",
    eps: float = 1e-6,
    eps_added: bool = False,
    clip: float | None = 5.0,
    mask: Tensor | None = None,
    combine: Literal["sum", "gdpo"] = "sum",
    weights: Mapping[str, float] | None = None,
) -> Advantages:
    """Normalise rewards inside their groups; all rows of the round, gathered over processes.

    Args:
        rewards: [n], or one [n] per reward. NaN in a named reward says that it does not apply to that prompt.
        group: int64 [n]; rows with one number share a prompt.
        std: divide by the standard deviation (population) of all valid rewards, or of the row's group.
        eps: least divisor, or what is added to it with ``eps_added`` (Flow-GRPO adds 1e-4).
        eps_added: see ``eps``.
        clip: bound of the result on both sides; None for none.
        mask: bool [n]; False rows are left out of every statistic.
        combine: ``sum`` adds weighted rewards and normalises once; ``gdpo`` normalises each reward in its
            group, adds them weighted, and normalises over the batch.
        weights: one per named reward, 1 by default.

    Raises:
        ValueError: on shapes that differ, values that are not finite, or unknown names.
    """
    if std not in ("global", "group") or combine not in ("sum", "gdpo"):
        raise ValueError(
            f"Expected std 'global' or 'group' and combine 'sum' or 'gdpo', got {std!r}, {combine!r}."
        )
    named = {"reward": rewards} if isinstance(rewards, Tensor) else dict(rewards)
    scale = _weights(named, weights)
    _check(named, group, mask)
    keep = torch.ones_like(group, dtype=torch.bool) if mask is None else mask.clone()
    values = {name: value.double() for name, value in named.items()}
    applies = {name: _applicable(name, value, group, keep) for name, value in values.items()}
    if not bool(torch.stack(list(applies.values())).any(0)[keep].all()):
        raise ValueError(
            "Expected at least one finite reward for every valid row; mask the rows that have none."
        )

    def total(parts: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([scale[k] * torch.where(applies[k], parts[k], 0.0) for k in parts]).sum(0)

    def divisor(spread: Tensor) -> Tensor:
        return spread + eps if eps_added else spread.clamp(min=eps)

    summed = total(values)
    if combine == "sum":
        centred, group_std = _standardise(summed, group, keep)
        spread = summed[keep].std(correction=0) if std == "global" else group_std
        advantage = centred / divisor(spread)
    else:
        parts = {}
        for name, value in values.items():
            centred, group_std = _standardise(value, group, keep & applies[name])
            parts[name] = centred / divisor(group_std)
        added = total(parts)
        advantage = (added - added[keep].mean()) / divisor(added[keep].std(correction=0))
    return _report(advantage, values, applies, group, keep, clip)


def _weights(named: Mapping[str, Tensor], weights: Mapping[str, float] | None) -> dict[str, float]:
    if not named:
        raise ValueError("Expected at least one reward, got none.")
    unknown = sorted(set(weights or {}) - set(named))
    if unknown:
        raise ValueError(f"Weights given for unknown rewards {unknown}; the rewards are {sorted(named)}.")
    return {name: 1.0 if weights is None else float(weights.get(name, 1.0)) for name in named}


def _check(named: Mapping[str, Tensor], group: Tensor, mask: Tensor | None) -> None:
    if group.ndim != 1 or group.dtype != torch.int64 or len(group) == 0:
        raise ValueError(
            f"Expected group as int64 [n] with n > 0, got {group.dtype} of shape {tuple(group.shape)}."
        )
    rows = [*named.items(), *([] if mask is None else [("mask", mask)])]
    for name, value in rows:
        if value.shape != group.shape:
            raise ValueError(f"Expected {name} of shape {tuple(group.shape)}, got {tuple(value.shape)}.")
    if mask is not None and (mask.dtype != torch.bool or not bool(mask.any())):
        raise ValueError("Expected mask as bool [n] with at least one valid row.")


def _applicable(name: str, value: Tensor, group: Tensor, keep: Tensor) -> Tensor:
    """Rows where a reward is a number; a group must agree, or its images were scored by different rules."""
    if bool(value[keep].isinf().any()):
        raise ValueError(f"Expected finite values of reward {name!r}, got infinity; mask failed rows.")
    applies = keep & ~value.isnan()
    for number in torch.unique(group[keep & ~applies]).tolist():
        if bool(applies[group == number].any()):
            raise ValueError(
                f"Expected reward {name!r} for all or none of group {number}, got some; "
                "mask the rows without it."
            )
    return applies


def _standardise(value: Tensor, group: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Deviation from the group mean, and the group's standard deviation, over kept rows; 0 elsewhere."""
    centred, spread = torch.zeros_like(value), torch.zeros_like(value)
    for number in torch.unique(group[keep]).tolist():
        rows = keep & (group == number)
        centred[rows] = value[rows] - value[rows].mean()
        spread[rows] = centred[rows].square().mean().sqrt()
    return centred, spread


def _report(
    advantage: Tensor,
    values: Mapping[str, Tensor],
    applies: Mapping[str, Tensor],
    group: Tensor,
    keep: Tensor,
    clip: float | None,
) -> Advantages:
    """Clip, blank what is not valid, and name the groups without signal."""
    valid, flat, dropped = keep.clone(), [], []
    for number in torch.unique(group).tolist():
        rows = keep & (group == number)
        if int(rows.sum()) < 2:
            dropped.append(number)
            valid &= group != number
        elif all(len(torch.unique(values[k][rows & applies[k]])) <= 1 for k in values):
            flat.append(number)
            advantage = torch.where(group == number, 0.0, advantage)  # not rounding divided by eps
    if clip is not None:
        advantage = advantage.clamp(-clip, clip)
    return Advantages(
        advantage=torch.where(valid, advantage, 0.0),
        valid=valid,
        zero_variance_groups=tuple(flat),
        dropped_groups=tuple(dropped),
    )
