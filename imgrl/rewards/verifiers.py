"""Rewards of texts that can be checked: ``(completions, prompts, **columns) -> n scores or None``.

The contract is that of image rewards with completions in the place of images: 1 is right, 0 is wrong, None does not
apply (no reference, or a prompt outside the grammar). A completion that states no answer is wrong. What a verifier
cannot judge is None or an exception, and so masked by the caller, never 0.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from imgrl.errors import RewardError

__all__ = ["Arithmetic", "Exact", "Math", "Regex", "completion_text"]

_log = logging.getLogger(__name__)


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or the content of the last message of a conversation.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion:
        content = completion[-1].get("content") if isinstance(completion[-1], dict) else None
        if isinstance(content, str):
            return content
    raise TypeError(
        f"Expected completions as texts or conversations, got {type(completion).__name__}; "
        "verifiers score texts, not images."
    )


def _pairs(completions: Sequence[Any], others: Sequence[Any], name: str) -> Iterator[tuple[str, Any]]:
    if len(completions) != len(others):
        raise ValueError(
            f"Expected one value of {name!r} per completion, got {len(others)} for {len(completions)}."
        )
    return ((completion_text(one), other) for one, other in zip(completions, others, strict=True))


def _plain(text: Any) -> str:
    return " ".join(str(text).split())


class Regex:
    """1 where the pattern's last match has the reference in its group, up to white space.

    Args:
        pattern: a regular expression with exactly one group, the answer.
    """

    def __init__(self, *, pattern: str) -> None:
        try:
            self.pattern = re.compile(pattern, re.MULTILINE)
        except re.error as error:
            raise ValueError(
                f"Expected a regular expression, got {pattern!r}, which is none: {error}."
            ) from error
        if self.pattern.groups != 1:
            raise ValueError(
                f"Expected a pattern with exactly one group, the answer, got {self.pattern.groups} in {pattern!r}; "
                "write (?:...) for groups that only hold together."
            )

    def find(self, completion: str) -> str | None:
        """The answer a completion states last, or None."""
        found = [match[1] for match in self.pattern.finditer(completion) if match[1] is not None]
        return _plain(found[-1]) if found else None

    def __call__(
        self, completions: Sequence[Any], prompts: Sequence[Any], *, answer: Sequence[Any]
    ) -> list[float | None]:
        """Score completions against the column ``answer``; rows without one get None."""
        del prompts
        return [
            None if reference is None else float(self.find(text) == _plain(reference))
            for text, reference in _pairs(completions, answer, "answer")
        ]


class Exact(Regex):
    """1 where what follows the last ``answer`` is the reference, up to white space.

    The answer ends with its line or at a semicolon; a full stop behind it does not count.

    Args:
        marker: the word before the answer; upper and lower case alike, an ``is``, ``:`` or ``=`` may follow.
    """

    def __init__(self, *, marker: str = "answer") -> None:
        if not marker.strip():
            raise ValueError("Expected a marker word before the answer, got an empty one.")
        super().__init__(
            pattern=rf"(?i:(?<!\w){re.escape(marker.strip())}(?!\w)(?:[ \t]+is\b)?[ \t]*[:=]?)"
            r"[ \t]*([^;\n]*?)[ \t]*\.?[ \t]*(?:;|$)"
        )


class Math:
    """1 where math-verify finds the completion's expression equal to the reference, such as 0.5 and 1/2.

    A reference that it cannot read and a comparison that fails give None. Its own deadlines need the main thread;
    elsewhere the caller's must do.

    Args:
        seconds: deadline of one parse or comparison on the main thread.
    """

    def __init__(self, *, seconds: int = 5) -> None:
        try:
            import math_verify  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError as error:
            raise RewardError(
                "The reward 'math' needs math-verify, not installed here; run `pip install 'imgrl[lm]'`."
            ) from error
        if not seconds > 0:
            raise ValueError(f"Expected seconds > 0, got {seconds}.")
        self.seconds = seconds

    def __call__(
        self, completions: Sequence[Any], prompts: Sequence[Any], *, answer: Sequence[Any]
    ) -> list[float | None]:
        """Score completions against the column ``answer``, plain or LaTeX; rows without one get None."""
        del prompts
        return [
            None if reference is None else self._score(text, str(reference))
            for text, reference in _pairs(completions, answer, "answer")
        ]

    def alike(self, answers: Sequence[str | None]) -> list[str | None]:
        """Each answer, which stands by itself and is plain or LaTeX, as the first one that is equal to it.

        Letters are variables. An answer that cannot be read or compared is equal to the same text only.
        """
        read: dict[str, Any] = {}
        first: dict[str, str] = {}
        for answer in dict.fromkeys(answer for answer in answers if answer is not None):
            expression = self._parsed(answer if "$" in answer else f"${answer}$")
            same = (other for other, own in read.items() if self._equal(own, expression))
            first[answer] = found = next(same, answer)
            if found == answer and expression:
                read[answer] = expression
        return [None if answer is None else first[answer] for answer in answers]

    def _score(self, text: str, reference: str) -> float | None:
        gold = self._parsed(reference) or self._parsed(f"${reference}$")
        if not gold:
            return None
        given = self._parsed(text)
        return self._equal(gold, given) if given else 0.0

    def _parsed(self, text: str) -> Any:
        from math_verify import parse

        return parse(text, parsing_timeout=self._deadline())

    def _equal(self, gold: Any, given: Any) -> float | None:
        from math_verify import verify

        try:
            return float(verify(gold, given, timeout_seconds=self._deadline(), raise_on_error=True))
        except Exception as error:  # sympy fails in many ways; one such answer must not mask its whole batch
            _log.warning("math-verify cannot compare %r with %r: %s", given, gold, error)
            return None

    def _deadline(self) -> Any:
        if threading.current_thread() is threading.main_thread():
            return self.seconds
        for module in ("parser", "grader"):  # elsewhere there are no alarms, of which they would warn
            logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
        return None


class Arithmetic:
    """1 where a problem of the embedded arithmetic has its right answer; the prompt alone says which that is.

    Prompts outside the grammar get None.

    Args:
        steps: share of the score that the visible steps make up; 0 judges the answer alone.
    """

    def __init__(self, *, steps: float = 0.0) -> None:
        if not 0 <= steps <= 1:
            raise ValueError(f"Expected a share of the steps in [0, 1], got {steps}.")
        self.steps = steps

    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any]) -> list[float | None]:
        """Score completions of the prompts."""
        return [self._score(text, prompt) for text, prompt in _pairs(completions, prompts, "prompts")]

    def _score(self, text: str, prompt: Any) -> float | None:
        from imgrl.world.arithmetic import is_problem, right_steps, verify

        question = completion_text(prompt)
        if not is_problem(question):
            return None
        score = float(verify(question, text))
        return (
            score if self.steps == 0 else (1 - self.steps) * score + self.steps * right_steps(question, text)
        )
