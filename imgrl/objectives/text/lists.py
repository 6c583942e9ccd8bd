"""The sequences of one prompt as a list of candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imgrl.anchor import log_ratio
from imgrl.flow.conventions import full_precision
from imgrl.objectives.text.base import TextBatch

__all__ = [
    "Norm",
    "list_metrics",
    "list_rewards",
    "list_rows",
    "scored_lists",
    "sequence_scores",
    "spread",
    "win_probability",
]

Norm = Literal["sum", "mean"]


def list_rows(batch: TextBatch, *, size: int | None = None) -> Int[Tensor, " b k"]:
    """Row numbers of each prompt's sequences, prompts by rising group number, rows in their order in the batch.

    Raises:
        ValueError: ``group`` was not filled, a group has one member, or groups differ in size (one is not whole).
    """
    if batch.group is None:
        raise ValueError("Expected TextBatch.group, the number of each sequence's prompt, got None; fill it.")
    counts = (batch.group[:, None] == batch.group[None, :]).sum(1)
    least, most = int(counts.min()), int(counts.max())
    if least != most or least != (size or least):
        wanted = f"whole groups of {size}" if size else "whole groups of one size"
        raise ValueError(
            f"Expected {wanted}, got groups of {least} to {most} sequences; "
            "keep all sequences of a prompt in one batch."
        )
    if least < 2:
        raise ValueError(
            "Expected at least two sequences of each prompt to compare, got one; raise the group size."
        )
    return batch.group.argsort(stable=True).view(-1, least)


def sequence_scores(
    log_prob: Float[Tensor, " n t"],
    mask: Float[Tensor, " n t"],
    *,
    norm: Norm,
    name: str = "log_prob",
) -> Float[Tensor, " n"]:
    """Log-probability of each sequence: the sum, or the mean, over its loss tokens; nats.

    Raises:
        ValueError: a loss token has a NaN or infinite log-probability, which would spread over its whole list.
    """
    log_prob = torch.where(mask > 0, full_precision(log_prob), 0.0)
    broken = (~log_prob.isfinite()).any(-1)
    if bool(broken.any()):
        rows = [row for row, bad in enumerate(broken) if bad]
        raise ValueError(
            f"Expected finite log-probabilities in TextBatch.{name}, got NaN or infinity in rows {rows}; "
            "check that both models share a tokenizer and that no token was masked out while sampling."
        )
    uniform = torch.zeros_like(log_prob)
    return log_ratio(log_prob, uniform, mask=mask, level="sequence" if norm == "sum" else "mean")


def list_rewards(
    batch: TextBatch, rows: Int[Tensor, " b k"], *, name: str, unscored: bool = False
) -> Float[Tensor, " b k"]:
    """Rewards by list; ValueError if they were not filled or are not finite. ``unscored`` lets NaN stand for none."""
    reward = batch.reward
    if reward is None or not bool((reward.isfinite() | (reward.isnan() & unscored)).all()):
        given = "None" if reward is None else "infinity" if unscored else "NaN or infinity"
        raise ValueError(f"Expected finite rewards in TextBatch.reward for objective {name!r}, got {given}.")
    return full_precision(reward).detach()[rows]


def scored_lists(
    rows: Int[Tensor, " b k"], reward: Float[Tensor, " b k"]
) -> Iterator[tuple[Int[Tensor, " c"], Int[Tensor, " c m"], Float[Tensor, " c m"]]]:
    """Lists of their scored candidates only, those with ``m`` of them together, from two on: which, rows, rewards."""
    scored = ~reward.isnan()
    counts = scored.sum(-1)
    for count in range(2, rows.shape[1] + 1):
        which = torch.arange(len(rows), device=rows.device)[counts == count]
        if not len(which):
            continue
        kept = scored[which]
        yield which, rows[which][kept].view(-1, count), reward[which][kept].view(-1, count)


def spread(values: Float[Tensor, " b"], rows: Int[Tensor, " b k"]) -> Float[Tensor, " n"]:
    """Each list's value at each of its rows."""
    return values[:, None].expand(rows.shape).flatten()[rows.flatten().argsort()]


def win_probability(u: Float[Tensor, " b k"], best: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """How probable each list's best candidate is under ``softmax(u)``, without gradient."""
    return u.detach().softmax(-1).gather(-1, best[:, None])[:, 0]


def list_metrics(batch: TextBatch, anchor: Float[Tensor, " n"] | None, *, norm: Norm) -> dict[str, Tensor]:
    """What is logged by sequence: log-ratio, and score in both norms.

    Scores are log-probabilities, nats; the log-ratio is taken in the norm of the loss.
    """
    live = batch.log_prob.detach()
    scores = {f"score_{kind}": sequence_scores(live, batch.mask, norm=kind) for kind in get_args(Norm)}
    ratio = scores[f"score_{norm}"] if anchor is None else scores[f"score_{norm}"] - anchor.detach()
    return {"log_ratio": ratio, **scores}
