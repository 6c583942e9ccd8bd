"""What a row of a text problem says: texts or conversations, of one kind, and not twice the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from imgrl.errors import ConfigError

__all__ = ["SPOKEN", "check_said", "conversion"]

SPOKEN = ("prompt", "completion", "chosen", "rejected")
"""Columns that are texts or conversations."""

_MESSAGE = '{"role": "user", "content": "…"}'
_KINDS = {bool: "true or false", int: "a number", float: "a number", dict: "a mapping", list: "a list"}
_SHOWN = 60


def check_said(source: str, rows: Sequence[Mapping[str, Any]], columns: Collection[str]) -> None:
    """Refuse rows that no trainer can read, or learn from.

    Args:
        source: how the user calls the file.
        rows: with these columns, none of them empty.
        columns: those that are texts or conversations.

    Raises:
        ConfigError: in one sentence with the row and the column, if a value is neither, if texts and conversations are
            mixed, or if a completion is preferred to itself.
    """
    first = None
    for number, row in enumerate(rows, 1):
        kinds = {column: _kind(source, row[column], column, number) for column in columns}
        for column, kind in kinds.items():
            first = first or (kind, column, number)
            if kind != first[0]:
                raise ConfigError(
                    f"{source} has {first[0]} as {first[1]!r} in row {first[2]}, but {kind} as {column!r} in row "
                    f"{number}; write all as texts, or all as conversations (lists of messages such as {_MESSAGE})"
                )
    if {"chosen", "rejected"} <= set(columns):
        _refuse_ties(source, rows)


def _kind(source: str, value: Any, column: str, number: int) -> str:
    """Whether it is ``a text`` or ``a conversation``."""
    if isinstance(value, str):
        return "a text"
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise ConfigError(
            f"{source} has {_KINDS.get(type(value), 'a value')} as {column!r} in row {number}, {_show(value)}; write a "
            f"text, or a conversation as a list of messages such as {_MESSAGE}"
        )
    for message in value:
        if not _is_message(message):
            raise ConfigError(
                f"{source} has a message without role and content in {column!r} of row {number}, {_show(message)}; "
                f"write each message as {_MESSAGE}"
            )
    return "a conversation"


def _is_message(message: Mapping[str, Any]) -> bool:
    """A role and a content of text or parts; one that calls a tool, say, may have no content."""
    content = message.get("content")
    if content is None:
        more = any(value is not None for key, value in message.items() if key not in ("role", "content"))
        return isinstance(message.get("role"), str) and more
    return isinstance(message.get("role"), str) and isinstance(content, str | list)


def _refuse_ties(source: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A pair of equals has no gradient; like an empty row it is a mistake of the data, not a matter of taste."""
    ties = [number for number, row in enumerate(rows, 1) if row["chosen"] == row["rejected"]]
    if ties:
        many = f"all {len(rows)} rows" if len(ties) == len(rows) > 1 else _rows(ties)
        raise ConfigError(
            f"{source} has the same 'chosen' and 'rejected' in {many}, so there is nothing to prefer; drop such rows, "
            "or give two different completions"
        )


def _rows(numbers: Sequence[int]) -> str:
    return (
        f"row {numbers[0]}"
        if len(numbers) == 1
        else f"{len(numbers)} rows, the first of them row {numbers[0]}"
    )


def conversion(row: Mapping[str, Any], needs: Collection[str]) -> str:
    """How to write a row of another common format: a part of a sentence, empty if the format is not known."""
    answers = "completion" in needs
    if {"chosen", "rejected"} <= row.keys() and "prompt" not in row:
        rest = ""
        if {"chosen", "rejected"} <= set(needs):
            rest = " and leave in them what follows"
        elif answers:
            rest = " and what follows in chosen into 'completion'"
        return f"put what chosen and rejected both begin with into 'prompt'{rest}"
    if "chosen" in needs or "prompt" in row:
        return ""
    for key in ("messages", "conversations"):
        if key in row:
            last = " and the last, as a list of one, into 'completion'" if answers else ""
            return f"put all of {key} but the last into 'prompt'{last}, each as {_MESSAGE}"
    if "text" in row:
        rest = " and the rest into 'completion'" if answers else ""
        return f"put the beginning of text into 'prompt'{rest}"
    return ""


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
