"""What tells one reward from another: its name, where it is, its args, and the source it was read from."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import imgrl
from imgrl.rewards.base import Reward
from imgrl.rewards.registry import REWARDS
from imgrl.rewards.spec import RewardSpec

__all__ = ["identity_of", "source_digest"]


def identity_of(reward: Reward, spec: RewardSpec) -> str | None:
    """Return a digest that changes whenever the reward's scores may, or None for scores that cannot be kept.

    They cannot if the reward learns, compares a whole group, declares ``cacheable = False``, or was handed over as a
    Python object without an attribute ``identity``: nobody can tell from outside what a closure holds.

    Of other files, such as weights, and of the modules that a reward imports nothing is known: a reward for which
    they change states what it depends on as the text ``identity``.
    """
    stated = getattr(reward.target, "identity", None)
    if reward.learns or reward.groupwise or not getattr(reward.target, "cacheable", True):
        return None
    if not (stated is None or isinstance(stated, str)) or (stated is None and not isinstance(spec.use, str)):
        return None
    use = spec.use if isinstance(spec.use, str) else None
    try:
        story = json.dumps(
            [imgrl.__version__, reward.name, use, dict(spec.args), stated, source_digest(use)], sort_keys=True
        )
    except (TypeError, ValueError):  # args that are Python objects
        return None
    return hashlib.sha256(story.encode()).hexdigest()


def source_digest(use: str | None) -> str | None:
    """Digest of the file that defines what a text names, if it is one."""
    if use is None:
        return None
    place = (REWARDS[use].factory if use in REWARDS else use).rpartition(":")[0]
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    try:
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:  # imported from an archive
        return None
