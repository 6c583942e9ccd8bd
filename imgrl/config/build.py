"""From a YAML tree to frozen dataclasses: structure is walked here, pydantic checks the leaves, strictly.

A union of dataclasses is told apart by the key ``name`` where its members have one, else by their keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import operator
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from imgrl.config.tree import Node, plain
from imgrl.errors import ConfigError

__all__ = ["build", "nearest"]

T = TypeVar("T")


def build(cls: type[T], tree: Node) -> T:
    """Construct a dataclass from a tree, refusing unknown keys, wrong types and impossible values.

    Raises:
        ConfigError: naming the key path, what was given, what was expected, and the place it was written.
    """
    return _dataclass(cls, tree, "")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known word, or a list of them if none is close."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(sorted(known))}"


def _value(tp: Any, node: Node, path: str, base: Any = None) -> Any:
    bare, constraints = _unwrap(tp)
    if dataclasses.is_dataclass(bare):
        return _dataclass(bare, node, path, base)  # type: ignore[arg-type]
    if get_origin(bare) in (Union, types.UnionType):
        return _union(tp, get_args(bare), node, path, base)
    origin = get_origin(bare)
    if isinstance(origin, type) and issubclass(origin, Mapping) and get_args(bare)[1] is not Any:
        return _mapping(get_args(bare)[1], constraints, node, path)
    return _leaf(tp, node, path)


def _unwrap(tp: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(tp) is Annotated:
        return tp.__origin__, tp.__metadata__
    return tp, ()


def _dataclass(cls: type[T], node: Node, path: str, base: Any = None) -> T:
    """Construct ``cls``; keys not given keep the values of ``base``, the parent's default of that class."""
    if isinstance(node.value, str) and isinstance(getattr(cls, "name", None), str):
        node = Node({"name": node}, node.where)  # `objective: crd` is short for `objective: {name: crd}`
    if not isinstance(node.value, dict):
        raise ConfigError(
            f"{path or 'the recipe'} must hold keys, but {_show(node)} was given ({node.where})"
        )
    hints = _hints(cls)
    given = dict(node.value)
    if "name" not in hints and isinstance(getattr(cls, "name", None), str):
        given.pop("name", None)
    for key, entry in given.items():
        if key not in hints:
            raise ConfigError(f"unknown key {_join(path, key)!r} ({entry.where}){nearest(key, hints)}")
    base = base if type(base) is cls else None
    for key in _required(cls) - given.keys():
        raise ConfigError(f"{path or 'the recipe'} needs the key {key!r} ({node.where})")
    defaults = _defaults(cls) if base is None else {key: getattr(base, key) for key in hints}
    values = {k: _value(hints[k], entry, _join(path, k), defaults.get(k)) for k, entry in given.items()}
    try:
        return cls(**values) if base is None else dataclasses.replace(base, **values)
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"{path or 'the recipe'} cannot be as written ({node.where}): {error}") from error


def _union(tp: Any, members: tuple[Any, ...], node: Node, path: str, base: Any) -> Any:
    structured = [m for m in members if dataclasses.is_dataclass(_unwrap(m)[0])]
    named = {m.name: m for m in structured if isinstance(getattr(m, "name", None), str)}
    if named and len(named) == len(structured) and isinstance(node.value, (dict, str)):
        return _dataclass(_by_name(named, node, path, base), node, path, base)
    if structured and isinstance(node.value, dict):
        return _dataclass(_by_keys(structured, node.value), node, path, base)
    short = next((m for m in structured if len(_hints(m)) == 1), None)
    if short is not None and isinstance(node.value, (int, float)):
        return _dataclass(
            short, Node(dict.fromkeys(_hints(short), node), node.where), path
        )  # 0.5: a constant
    leaves = [m for m in members if m not in structured]
    if not leaves:
        raise ConfigError(f"{path} must hold keys, but {_show(node)} was given ({node.where})")
    return _leaf(functools.reduce(operator.or_, leaves) if structured else tp, node, path)


def _by_name(named: dict[str, type], node: Node, path: str, base: Any) -> type:
    tag = Node(node.value, node.where) if isinstance(node.value, str) else node.value.get("name")
    if tag is None and type(base) in named.values():
        return type(base)
    if tag is None:
        raise ConfigError(f"{path} needs a 'name' ({node.where}): one of {', '.join(sorted(named))}")
    if tag.value not in named:
        raise ConfigError(f"{path}.name is {_show(tag)} ({tag.where}){nearest(str(tag.value), named)}")
    return named[tag.value]


def _by_keys(members: list[type], given: dict[str, Node]) -> type:
    """The member that knows most of the keys; among equals, the one that leaves fewest of its own unset."""
    return max(
        members, key=lambda m: (len(given.keys() & _hints(m).keys()), -len(_hints(m).keys() - given.keys()))
    )


def _mapping(item: Any, constraints: tuple[Any, ...], node: Node, path: str) -> dict[str, Any]:
    if not isinstance(node.value, dict):
        raise ConfigError(f"{path} must be a mapping of names, but {_show(node)} was given ({node.where})")
    if not node.value and constraints:
        raise ConfigError(f"{path} must have at least one entry ({node.where})")
    return {key: _value(item, entry, _join(path, key)) for key, entry in node.value.items()}


def _leaf(tp: Any, node: Node, path: str) -> Any:
    try:
        # JSON mode, because it is the one where strict still reads lists as tuples and mappings as such.
        return _adapter(tp).validate_json(json.dumps(plain(node)), strict=True)
    except ValidationError as error:
        wanted = dict.fromkeys(_sentence(entry["type"], entry["msg"]) for entry in error.errors())
        raise ConfigError(
            f"{path} {' or '.join(wanted)}, but {_show(node)} was given ({node.where})"
        ) from error


def _sentence(kind: str, message: str) -> str:
    if kind in ("missing", "too_short"):
        return "needs more values"
    if kind == "too_long" or kind == "unexpected_positional_argument":
        return "has too many values"
    message = message.removeprefix("Value error, ")
    return message.removeprefix("Input ") if message.startswith("Input ") else f"is wrong: {message}"


def _show(node: Node) -> str:
    text = json.dumps(plain(node), ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


@functools.cache
def _adapter(tp: Any) -> TypeAdapter[Any]:
    return TypeAdapter(tp, config=ConfigDict(allow_inf_nan=False))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]


@functools.cache
def _defaults(cls: type) -> dict[str, Any]:
    made = {
        f.name: f.default_factory()
        for f in dataclasses.fields(cls)
        if f.default_factory is not dataclasses.MISSING
    }
    return made | {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}


def _required(cls: type) -> set[str]:
    return set(_hints(cls)) - set(_defaults(cls))
