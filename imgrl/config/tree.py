"""YAML as a tree that remembers its line numbers.

Safe by construction: only mappings with text keys, lists and plain scalars come through. Two departures from
PyYAML: a key written twice is refused (there the last one wins), and ``3e-4`` is a number (there a string).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from imgrl.errors import ConfigError

__all__ = ["Node", "parse_file", "parse_text", "plain"]

_STANDARD = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Node:
    """A value and where it was written."""

    value: Any
    """dict[str, Node], list[Node], or a plain scalar."""
    where: str
    """``file:line``, or the override it came from."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads floats without a point, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    _STANDARD + "float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_file(path: Path) -> Node:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: if it cannot be read, is not YAML, or uses more of YAML than a recipe needs.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} could not be read as UTF-8 text: {error}") from error
    node = parse_text(text, source=str(path))
    if node.value is None:
        return Node({}, node.where)
    if not isinstance(node.value, dict):
        raise ConfigError(
            f"recipe {path} must be a mapping of sections such as 'batch:', not {type(node.value).__name__}"
        )
    return node


def parse_text(text: str, *, source: str, lines: bool = True) -> Node:
    """Parse YAML text; ``source`` names it in errors, with line numbers if ``lines``."""
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                place = _place(source, event.start_mark, lines)
                raise ConfigError(f"{place} uses a YAML alias; write the value out instead")
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            return Node(None, source) if root is None else _convert(loader, root, source, lines)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = source if mark is None else _place(source, mark, lines)
        raise ConfigError(f"{place} is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply to be a recipe") from error


def plain(node: Node) -> Any:
    """Return the value without the places."""
    if isinstance(node.value, dict):
        return {key: plain(entry) for key, entry in node.value.items()}
    if isinstance(node.value, list):
        return [plain(entry) for entry in node.value]
    return node.value


def _place(source: str, mark: Any, lines: bool) -> str:
    return f"{source}:{mark.line + 1}" if lines else source


def _convert(loader: _Loader, node: yaml.Node, source: str, lines: bool) -> Node:
    where = _place(source, node.start_mark, lines)
    if not node.tag.startswith(_STANDARD) or node.tag.startswith(_STANDARD + "python"):
        raise ConfigError(f"{where} uses the YAML tag {node.tag!r}; only plain values are allowed")
    if isinstance(node, yaml.MappingNode):
        return Node(_mapping(loader, node, source, lines), where)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(loader, item, source, lines) for item in node.value], where)
    try:
        value = loader.construct_object(node)
    except ValueError as error:  # such as the date 2024-13-45
        raise ConfigError(
            f"{where} holds {node.value!r}, which is not a value YAML can read: {error}"
        ) from error
    return Node(value if value is None or isinstance(value, (bool, int, float, str)) else node.value, where)


def _mapping(loader: _Loader, node: yaml.MappingNode, source: str, lines: bool) -> dict[str, Node]:
    out: dict[str, Node] = {}
    for key_node, value_node in node.value:
        where = _place(source, key_node.start_mark, lines)
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{where} has a key that is not a name")
        key = key_node.value
        if key in out:
            raise ConfigError(
                f"{where} repeats the key {key!r}, first written at {out[key].where}; keep one of them"
            )
        entry = _convert(loader, value_node, source, lines)
        # A block value starts on the line after its key; the key's own line is the better place to point at.
        out[key] = Node(entry.value, where)
    return out
