"""What image and language recipes write alike."""

from __future__ import annotations

from imgrl.config.tree import Node

__all__ = ["named_rewards"]


def named_rewards(tree: Node) -> Node:
    """Write out that a reward without ``use`` is the built-in one of its own name."""
    rewards = tree.value.get("rewards")
    if rewards is None or not isinstance(rewards.value, dict):
        return tree
    full = {
        name: Node({"use": Node(name, given.where), **given.value}, given.where)
        if isinstance(given.value, dict)
        else given
        for name, given in rewards.value.items()
    }
    return Node({**tree.value, "rewards": Node(full, rewards.where)}, tree.where)
