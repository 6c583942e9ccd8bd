"""One reward: what it is called with, and what it must answer.

A reward is ``reward(images, prompts, **columns) -> n scores``: ``images`` float [n, 3, H, W] in [0, 1], of a language
model a list of n texts, ``prompts`` a list of n texts, each column a list of n values. A score is a finite number, or
None where the reward does not apply. An attribute ``groupwise = True`` asks for one call a group, with the whole group
in it.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.calling import Failure, Patience, call_patiently
from imgrl.types import Prompt

__all__ = ["Reward", "check_scores", "column_names"]


class Reward:
    """A callable with its name, its columns and the manners of calling it.

    The signature decides once which columns are passed: all of them if it has ``**columns``, else those it
    names. A named parameter without a default is a column that the data must have.

    Args:
        name: how recipes, logs and errors call it.
        function: the reward itself; what a ``functools.partial`` has bound wins over a column of that name.
        patience: deadline and repetitions.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        patience: Patience | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.patience = patience or Patience()
        partial = function if isinstance(function, functools.partial) else None
        self.bound = frozenset(partial.keywords if partial else ())
        self.target: Any = partial.func if partial else function  # has the attributes that a partial hides
        self.groupwise = bool(getattr(self.target, "groupwise", False))
        self._read_signature()

    @property
    def learns(self) -> bool:
        """Whether it has a ``learn`` method, and so a state to save."""
        return callable(getattr(self.target, "learn", None))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Ask its ``check_prompts``, if it has one, whether it could judge all of these.

        Raises:
            RewardError: what that says, with the reward's name.
        """
        check = getattr(self.target, "check_prompts", None)
        if not callable(check):
            return
        try:
            check(prompts)
        except Exception as error:
            raise RewardError(f"Reward {self.name!r}: {error}") from error

    def _read_signature(self) -> None:
        try:
            parameters = list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"Reward {self.name!r}: its parameters cannot be read; wrap it in a function "
                "`def reward(images, prompts, **columns)`, or of texts `def reward(texts, prompts, **columns)`."
            ) from error
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            raise RewardError(
                f"Reward {self.name!r} must take two positional parameters, images (or texts) and prompts, "
                f"got ({', '.join(map(str, parameters))})."
            )
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        named = [p for p in named if p not in positional[:2] and p.name not in self.bound]
        self.required = frozenset(p.name for p in named if p.default is p.empty)
        self.optional = frozenset(p.name for p in named) - self.required
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._taken = frozenset(p.name for p in positional[:2])

    def passed_columns(self, available: Iterable[str]) -> tuple[str, ...]:
        """Return the columns that calls will carry, of those the data set has.

        Raises:
            RewardError: if one is missing, or has the name of the reward's parameter for images or prompts.
        """
        available = set(available) - self.bound
        if missing := sorted(self.required - available):
            raise RewardError(
                f"Reward {self.name!r} requires the column {missing[0]!r}, but the prompts have "
                f"{', '.join(sorted(available)) or 'no columns'}; add it to the data or to the reward's args."
            )
        if not self.takes_all:
            return tuple(sorted(available & (self.required | self.optional)))
        if clash := sorted(available & self._taken):
            raise RewardError(
                f"Reward {self.name!r}: the data set's column {clash[0]!r} has the name of the reward's own "
                "parameter; rename the column."
            )
        return tuple(sorted(available))

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], columns: Sequence[str]) -> Tensor | Failure:
        """Score images: float32 [n] with NaN for "does not apply", or the failure of every attempt.

        Raises:
            RewardError: if the answer breaks the contract; that is a bug, and trying again would not mend it.
        """
        texts = [prompt.text for prompt in prompts]
        extra = {key: [prompt.columns.get(key) for prompt in prompts] for key in columns}
        version = _version(images)
        try:
            answer = call_patiently(
                lambda: self.function(images, texts, **extra), patience=self.patience, name=self.name
            )
        except Failure as failure:
            return failure
        if _version(images) != version:
            raise RewardError(
                f"Reward {self.name!r} changed its images in place, which other rewards see too; "
                "let it work on a copy."
            )
        what = "image" if isinstance(images, Tensor) else "completion"
        return check_scores(answer, texts, name=self.name, what=what)


def _version(images: Any) -> int:
    if not isinstance(images, Tensor) or images.is_inference():  # completions are texts, which nobody changes
        return 0
    return images._version  # counts changes in place


def column_names(prompts: Iterable[Prompt]) -> frozenset[str]:
    """The columns that any of the prompts has; where a row lacks one, rewards are given None."""
    return frozenset(key for prompt in prompts for key in prompt.columns)


def check_scores(answer: Any, prompts: Sequence[str], *, name: str, what: str = "image") -> Tensor:
    """Turn a reward's answer into float32 [n], NaN where it said None.

    Raises:
        RewardError: for a wrong length or type, and for NaN or infinity, with the index and its prompt.
    """
    if isinstance(answer, np.ndarray | Tensor):
        if answer.ndim != 1:
            raise RewardError(
                f"Reward {name!r} must return {len(prompts)} scores, "
                f"got an array of shape {tuple(answer.shape)}."
            )
        answer = answer.tolist()
    if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
        raise RewardError(
            f"Reward {name!r} must return a list, array or tensor of {len(prompts)} scores, "
            f"got {type(answer).__name__}."
        )
    if len(answer) != len(prompts):
        raise RewardError(
            f"Reward {name!r} was given {len(prompts)} {what}s and returned {len(answer)} scores."
        )
    scores = [
        _number(value, name, f"for {what} {index}, prompt {prompts[index]!r}")
        for index, value in enumerate(answer)
    ]
    return torch.tensor(scores, dtype=torch.float32)


def _number(value: Any, name: str, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, numbers.Real | np.bool_):
        raise RewardError(
            f"Reward {name!r} returned {value!r} ({type(value).__name__}) {where}; a number was expected."
        )
    number = float(value)
    if not math.isfinite(number) or abs(number) > torch.finfo(torch.float32).max:
        raise RewardError(
            f"Reward {name!r} returned {number} {where}; a finite number was expected, "
            "or None if it does not apply."
        )
    return number
