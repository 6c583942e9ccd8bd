"""Rewards: any callable ``(images, prompts, **columns) -> n scores``, the built-in ones, their sum."""

from imgrl.rewards.base import Reward
from imgrl.rewards.combine import RewardSet, RewardSpec
from imgrl.rewards.registry import REWARDS, RewardEntry

__all__ = ["REWARDS", "Reward", "RewardEntry", "RewardSet", "RewardSpec"]
