"""Rewards of this project as TRL calls them: checked at the border, failures masked and counted, never zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from imgrl.errors import BudgetError, RewardError
from imgrl.rewards import REWARDS, RewardSpec
from imgrl.rewards.base import Reward
from imgrl.rewards.calling import Failure, Patience
from imgrl.rewards.resolve import make
from imgrl.training.faults import Fault
from imgrl.training.groups import group_advantages
from imgrl.types import Prompt

__all__ = [
    "Silence",
    "TextReward",
    "build_rewards",
    "judge",
    "population_advantages",
    "reward_of",
    "total_of",
]


def judge(
    reward: Reward,
    completions: Sequence[Any],
    prompts: Sequence[Prompt],
    columns: Sequence[str],
    *,
    size: int,
) -> list[Tensor | Failure]:
    """A reward's answers: in one call, or in one a group of ``size`` neighbours where it is groupwise."""
    step = size if reward.groupwise else len(prompts)
    starts = range(0, len(prompts), step)
    return [reward(completions[i : i + step], prompts[i : i + step], columns) for i in starts]  # type: ignore[arg-type]


class TextReward:
    """One reward as TRL's reward function: ``(prompts, completions, **columns) -> n numbers or None``.

    Args:
        reward: what is called.
        budget: share of the completions of a step, those of all processes, that it may fail on before the run stops.
        columns: of the data.
        group_size: completions a prompt, which are neighbours.
    """

    def __init__(self, reward: Reward, *, budget: float, columns: Sequence[str], group_size: int) -> None:
        self.reward, self.budget, self.group_size = reward, budget, group_size
        self.columns = reward.passed_columns(columns)
        self.failed: list[bool] = []
        """By completion of the last step: whether there is no score because the reward failed."""
        self.failure: Failure | None = None
        """How it did, the first time in that step."""
        self.missed, self.asked = 0, 0
        """Completions of that step without a score for it, and all, on all processes; see ``require_few``."""
        self.__name__ = reward.name  # TRL logs it under this name

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Score completions; None where the reward does not apply, and where it kept failing; see ``require_few``."""
        rows = [
            Prompt(id=i, text=text, columns={key: columns[key][i] for key in self.columns})
            for i, text in enumerate(prompts)
        ]
        answers = judge(self.reward, completions, rows, self.columns, size=self.group_size)
        found: list[float | None] = []
        self.failed = []
        for answer in answers:
            failed = isinstance(answer, Failure)
            scores = [math.nan] * (len(rows) // len(answers)) if failed else answer.tolist()
            found += [None if math.isnan(score) else score for score in scores]
            self.failed += [failed] * len(scores)
        self.failure = next((answer for answer in answers if isinstance(answer, Failure)), None)
        if "log_metric" in columns:
            columns["log_metric"](f"rewards/{self.reward.name}/none", found.count(None) / len(found))
        return found

    def require_few(self, failed: Tensor) -> None:
        """Stop a run in which it fails too often.

        Args:
            failed: bool [n], of the completions of a step on all processes.

        Raises:
            BudgetError: above the budget, on every process alike; with the reason where it failed.
        """
        count, missed = len(failed), int(failed.sum())
        self.asked, self.missed = count, missed
        if missed > self.budget * count:
            why = self.failure or "another process says why"
            raise BudgetError(
                f"Reward {self.reward.name!r} failed on {'all' if missed == count else f'{missed} of'} {count} "
                f"completions of a step, more than the failure_budget of {self.budget:.0%}; {why}."
            )

    def take_fault(self) -> Fault | None:
        """What is to be told of the last rollout, once: several steps may train on it."""
        missed, self.missed = self.missed, 0
        return Fault(reward=self.reward.name, missed=missed, why=self.failure) if missed else None


class Silence:
    """Ends a run whose rewards have not said anything yet: what nobody judges, nobody can learn from."""

    def __init__(self, *, most: int = 3) -> None:
        """Wait for a first word in so many rollouts."""
        self._left: int | None = most
        self._most = most

    def listen(self, said: Tensor, names: Sequence[str]) -> None:
        """Hear of a rollout.

        Args:
            said: bool [n, rewards], where a reward with a weight gave a score or failed, on all processes.
            names: of the rewards.

        Raises:
            RewardError: if that was the last rollout to wait for, on every process alike.
        """
        if self._left is None or bool(said.any()):
            self._left = None
            return
        self._left -= 1
        if self._left == 0:
            raise RewardError(
                f"No reward ({', '.join(names)}) applied to any completion of the first {self._most} rollouts, so "
                "there is nothing to learn from: give rewards that judge these prompts, and the columns they read."
            )


def total_of(scores: Tensor, failed: Tensor, weights: Tensor, *, size: int) -> Tensor:
    """Weighted sum [n] of the rewards that apply; NaN for a completion that is to be left out.

    As with images: a reward that says None of a whole group does not apply to its prompt, and the others decide. A
    completion is left out if a reward with a weight failed on it or says nothing of it alone, because the rest of its
    group was judged by more, or if no reward with a weight applies.

    Args:
        scores: [n, rewards], NaN for None; neighbours form groups.
        failed: bool [n, rewards].
        weights: [rewards]; those with weight 0 are only watched.
        size: of a group.
    """
    counts = weights != 0
    said = ~scores.isnan() & counts
    applies = said.view(-1, size, len(weights)).any(1).repeat_interleave(size, 0)
    left_out = (failed & counts).any(-1) | (applies & ~said).any(-1) | ~said.any(-1)
    total = torch.where(said, scores * weights, 0.0).sum(-1)
    return total.masked_fill(left_out, math.nan)


def population_advantages(total: Tensor, *, size: int) -> Tensor:
    """How far each of ``total`` [n] is above the mean of its ``size`` neighbours, in their population deviation + 1e-6.

    NaN stays out of both and gets 0, as does a completion that is left alone.
    """
    scored = ~total.isnan()
    if not bool(scored.any()):
        return torch.zeros_like(total)
    group = torch.arange(len(total), device=total.device) // size
    return group_advantages(total, group, std="group", eps_added=True, clip=None, mask=scored).advantage


def reward_of(name: str, spec: RewardSpec) -> Reward:
    """The reward that a recipe writes, without its weight.

    Raises:
        RewardError: if it names nothing, cannot be constructed, or cannot be waited for.
    """
    try:
        patience = Patience(timeout=spec.timeout, retries=spec.retries, backoff=spec.backoff)
    except ValueError as error:
        raise RewardError(f"Reward {name!r}: {error}") from error
    entry = REWARDS.get(spec.use) if isinstance(spec.use, str) else None
    if entry is not None and entry.scores != "completions":
        fitting = ", ".join(own for own, other in REWARDS.items() if other.scores == "completions")
        raise RewardError(
            f"Reward {name!r} judges images, and a language model writes texts; of the built-in ones use {fitting}, or "
            "give a function of your own."
        )
    return Reward(name, make(spec.use, spec.args, name=name), patience=patience)


def build_rewards(
    specs: Mapping[str, float | str | RewardSpec],
    *,
    budget: float,
    columns: Sequence[str],
    group_size: int,
) -> tuple[list[TextReward], list[float]]:
    """The recipe's rewards and their weights.

    Raises:
        RewardError: if one names nothing, cannot be constructed, or wants a column that the data lacks.
    """
    rewards, weights = [], []
    for name, given in specs.items():
        spec = given
        if isinstance(spec, str):
            spec = RewardSpec(use=spec)
        elif not isinstance(spec, RewardSpec):
            spec = RewardSpec(use=name, weight=float(spec))
        if spec.heldout_only:
            raise RewardError(
                f"Reward {name!r} is heldout_only, which language recipes do not know; "
                "evaluation.verifier judges held-out problems."
            )
        rewards.append(
            TextReward(reward_of(name, spec), budget=budget, columns=columns, group_size=group_size)
        )
        weights.append(float(spec.weight))
    return rewards, weights
