"""Rewards: any callable ``(images, prompts, **columns) -> n scores``, the built-in ones, their sum."""

from typing import TYPE_CHECKING, Any

from imgrl.rewards.registry import REWARDS, RewardEntry
from imgrl.rewards.spec import RewardSpec

if TYPE_CHECKING:
    from imgrl.rewards.base import Reward
    from imgrl.rewards.combine import RewardSet

__all__ = ["REWARDS", "Reward", "RewardEntry", "RewardSet", "RewardSpec"]


def __getattr__(name: str) -> Any:  # recipes need the light names only, and these two import torch
    if name == "Reward":
        from imgrl.rewards.base import Reward

        return Reward
    if name == "RewardSet":
        from imgrl.rewards.combine import RewardSet

        return RewardSet
    raise AttributeError(f"module 'imgrl.rewards' has no attribute {name!r}")
