"""Rewards without labels: the group's most frequent answer stands for the truth (TTRL, arXiv 2504.16084)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

__all__ = ["Ties", "Vote", "majority", "vote_rewards"]

Ties = Literal["first", "none"]
"""Among equally frequent answers: the one that came first, or no winner."""


class Vote(NamedTuple):
    """How a group voted."""

    answer: str | None
    """The winner; None if no answer could be parsed, or on a tie that has no winner."""
    share: float
    """Votes for it, as a share of the parsed answers."""
    tied: bool
    """Whether another answer had as many votes."""


def majority(answers: Sequence[str | None], *, ties: Ties = "first") -> Vote:
    """The most frequent of a group's parsed answers; None among them could not be parsed and does not vote."""
    if ties not in ("first", "none"):
        raise ValueError(f"Unknown rule for ties {ties!r}; choose 'first' or 'none'.")
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return Vote(None, 0.0, False)
    (winner, votes), *others = counts.most_common()
    tied = bool(others) and others[0][1] == votes
    if tied and ties == "none":
        return Vote(None, votes / counts.total(), True)
    return Vote(winner, votes / counts.total(), tied)


def vote_rewards(
    answers: Sequence[str | None], *, ties: Ties = "first", leave_one_out: bool = False
) -> list[float | None]:
    """1 for answers that agree with the group's majority, 0 for others, of one prompt's responses.

    Args:
        answers: parsed answers in normal form, so that equal ones are equal strings; None could not be parsed.
        ties: see ``Ties``.
        leave_one_out: judge each response by the vote of the others.

    Returns:
        A number a response, 0 for one that could not be parsed; None for all where nothing was decided (no answer
        parsed, or a tie without winner), so that a group without a vote teaches nothing.

    Raises:
        ValueError: if a group has a single member, whose vote would reward itself.
    """
    if len(answers) < 2:
        raise ValueError(
            f"A vote needs at least 2 responses to a prompt, got {len(answers)}; raise the group size."
        )
    if not leave_one_out:
        winner = majority(answers, ties=ties).answer
        if winner is None:
            return [None] * len(answers)
        return [float(answer == winner) for answer in answers]
    winners = [majority([*answers[:i], *answers[i + 1 :]], ties=ties).answer for i in range(len(answers))]
    return [
        None if winner is None else float(answer == winner)
        for answer, winner in zip(answers, winners, strict=True)
    ]
