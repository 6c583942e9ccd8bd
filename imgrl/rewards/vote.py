"""A reward without labels: agreement with the group's majority (TTRL, arXiv 2504.16084)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from imgrl.objectives.text.votes import Ties, vote_rewards
from imgrl.rewards.verifiers import Exact, Math, Regex, completion_text

__all__ = ["Vote"]


class Vote:
    """1 for completions whose answer is the most frequent one of their group, 0 for others.

    A call is one group: all completions of one prompt. Where nothing is decided (no answer parsed, or a tie without
    winner) the group gets None.

    Args:
        pattern: a regular expression whose one group is the answer; None takes what follows the last ``marker``.
        marker: the word before the answer.
        ties: ``first`` lets the answer that came first win, ``none`` nobody.
        leave_one_out: judge each completion by the others.
        equal: whether answers agree as texts, or as math-verify reads them, where 1/2 and 0.5 are one vote.
    """

    groupwise = True

    def __init__(
        self,
        *,
        pattern: str | None = None,
        marker: str = "answer",
        ties: Ties = "none",
        leave_one_out: bool = False,
        equal: Literal["text", "math"] = "text",
    ) -> None:
        if ties not in ("first", "none"):
            raise ValueError(f"Unknown rule for ties {ties!r}; choose 'first' or 'none'.")
        if equal not in ("text", "math"):
            raise ValueError(f"Unknown equality of answers {equal!r}; choose 'text' or 'math'.")
        self.math = Math() if equal == "math" else None
        self.reader = Exact(marker=marker) if pattern is None else Regex(pattern=pattern)
        self.ties: Ties = ties
        self.leave_one_out = leave_one_out

    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any]) -> list[float | None]:
        """Rewards of a group's completions, which like the prompts are texts or conversations."""
        # Conversations have no hash, so no set.
        count = sum(prompt not in prompts[:i] for i, prompt in enumerate(prompts))
        if count > 1:
            raise ValueError(f"A vote is among completions of one prompt, got {count} prompts in one call.")
        answers = [self.reader.find(completion_text(one)) for one in completions]
        if self.math is not None:
            answers = self.math.alike(answers)
        return vote_rewards(answers, ties=self.ties, leave_one_out=self.leave_one_out)
