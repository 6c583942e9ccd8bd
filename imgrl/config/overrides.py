"""Dotted overrides from the command line: ``objective.beta=0.5``."""

from __future__ import annotations

from collections.abc import Sequence

from imgrl.config.tree import Node, parse_text
from imgrl.errors import ConfigError

__all__ = ["apply_overrides"]


def apply_overrides(tree: Node, overrides: Sequence[str]) -> Node:
    """Return the tree with every override put in place; the keys themselves are checked when it is built.

    Raises:
        ConfigError: for an override without ``=``, with an empty key, into something that is not a mapping,
            or in conflict with another override.
    """
    seen: dict[tuple[str, ...], str] = {}
    for override in overrides:
        path = _path(override)
        for other, text in seen.items():
            shared = min(len(path), len(other))
            if path[:shared] == other[:shared]:
                raise ConfigError(f"overrides {text!r} and {override!r} set the same key; keep one of them")
        seen[path] = override
        source = f"override {override!r}"
        tree = _put(tree, path, parse_text(override.split("=", 1)[1], source=source, lines=False), source)
    return tree


def _path(override: str) -> tuple[str, ...]:
    key, equals, _ = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(
            f"override {override!r} must look like section.key=value, such as objective.beta=0.5"
        )
    return path


def _put(node: Node, path: tuple[str, ...], value: Node, source: str, done: str = "") -> Node:
    if not isinstance(node.value, dict):
        raise ConfigError(
            f"{source} goes into {done}, which is {node.value!r} ({node.where}) and has no keys"
        )
    head, rest = path[0], path[1:]
    if rest:
        value = _put(
            node.value.get(head, Node({}, source)), rest, value, source, f"{done}.{head}".lstrip(".")
        )
    return Node({**node.value, head: value}, node.where)
