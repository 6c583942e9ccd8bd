"""Rewards of this project as TRL calls them: checked at the border, failures masked and counted, never zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from imgrl.errors import RewardError
from imgrl.rewards import RewardSpec
from imgrl.rewards.base import Reward
from imgrl.rewards.calling import Failure, Patience
from imgrl.rewards.resolve import make
from imgrl.types import Prompt

__all__ = ["TextReward", "build_rewards"]


class TextReward:
    """One reward as TRL's reward function: ``(prompts, completions, **columns) -> n numbers or None``."""

    def __init__(self, reward: Reward, *, budget: float, columns: Sequence[str]) -> None:
        self.reward, self.budget = reward, budget
        self.columns = reward.passed_columns(columns)
        self.__name__ = reward.name  # TRL logs it under this name

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Score completions; a reward that keeps failing gives None for all of them, up to the budget."""
        rows = [
            Prompt(id=i, text=text, columns={key: columns[key][i] for key in self.columns})
            for i, text in enumerate(prompts)
        ]
        scores = self.reward(completions, rows, self.columns)  # type: ignore[arg-type]
        if isinstance(scores, Failure):
            if self.budget < 1:  # the whole batch failed
                raise RewardError(
                    f"Reward {self.reward.name!r} failed on all {len(rows)} completions of a step, more than the "
                    f"failure_budget of {self.budget:.0%}; {scores}."
                )
            return [None] * len(rows)
        found = [None if math.isnan(score) else score for score in scores.tolist()]
        if "log_metric" in columns:
            columns["log_metric"](f"rewards/{self.reward.name}/none", found.count(None) / len(found))
        return found


def build_rewards(
    specs: Mapping[str, float | str | RewardSpec], *, budget: float, columns: Sequence[str]
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
        patience = Patience(timeout=spec.timeout, retries=spec.retries, backoff=spec.backoff)
        reward = Reward(name, make(spec.use, spec.args, name=name), patience=patience)
        rewards.append(TextReward(reward, budget=budget, columns=columns))
        weights.append(float(spec.weight))
    return rewards, weights
