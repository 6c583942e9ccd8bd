"""Reads prompts: a text file, a JSON-lines file with columns, a list, or the embedded world's grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from imgrl.errors import DataError
from imgrl.types import Prompt

__all__ = ["WORLD_SETS", "load_prompts"]

WORLD_SETS: dict[str, tuple[Literal["train", "heldout"], Literal["six", "words", "random"]]] = {
    "world:train": ("train", "six"),
    "world:heldout": ("heldout", "six"),
    "world:text-train": ("train", "words"),
    "world:text-heldout": ("heldout", "words"),
    "world:text-random": ("train", "random"),
    "world:text-random-heldout": ("heldout", "random"),
}
"""Prompts made on the spot: the split, and GenEval's six tasks, signs with words, or with random letters."""

HELD_OUT_PER_TASK = 24
"""Prompts of each task in the held-out sets; tasks with fewer repeat theirs, so that all weigh the same."""

_RESERVED = ("images", "prompts")  # a column of that name would collide with a reward's own parameters


def load_prompts(source: str | Path | Sequence[Any]) -> list[Prompt]:
    """Load the prompts of a data set, numbered in their order.

    Args:
        source: a ``.txt`` file (one prompt a line, blank lines skipped), a ``.jsonl`` file (objects with
            ``prompt`` and any further columns), one of ``WORLD_SETS``, or a list of texts, mappings or
            ``Prompt``.

    Raises:
        DataError: if the source is missing, empty, malformed or names a prompt twice (same text and columns).
    """
    if isinstance(source, str) and source.startswith("world:"):
        return _world(source)
    if isinstance(source, str | Path):
        rows, name = _read(Path(source)), str(source)
    elif isinstance(source, Sequence):
        rows, name = ((f"entry {i}", row) for i, row in enumerate(source)), "the list"
    else:
        raise DataError(f"Prompts must be a file, a 'world:' name or a list, got {type(source).__name__}.")
    prompts: list[Prompt] = []
    seen: dict[tuple[str, str], str] = {}
    for where, row in rows:
        text, columns = _row(row, where)
        key = (text, json.dumps(columns, sort_keys=True, default=repr))
        if key in seen:
            raise DataError(f"{where} repeats {seen[key]} ({text!r}); remove one of them.")
        seen[key] = where
        prompts.append(Prompt(id=len(prompts), text=text, columns=columns))
    if not prompts:
        raise DataError(f"At least one prompt is needed, but {name} has none.")
    return prompts


def _world(source: str) -> list[Prompt]:
    if source not in WORLD_SETS:
        raise DataError(f"There is no prompt set {source!r}; the sets are {', '.join(WORLD_SETS)}.")
    from imgrl.world import prompts as grammar

    split, kind = WORLD_SETS[source]
    if kind == "random":
        return grammar.random_signs(split)
    limit = HELD_OUT_PER_TASK if split == "heldout" else None
    return grammar.prompts(
        split,
        grammar.TASKS if kind == "six" else ("text",),
        limit_per_task=limit,
        repeat_to_limit=limit is not None,
    )


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of each row, blank lines left out."""
    if path.suffix not in (".txt", ".jsonl"):
        raise DataError(f"Prompt files end in .txt or .jsonl, got {str(path)!r}.")
    try:
        if not path.is_file():
            raise DataError(f"There is no prompt file {path.resolve()}.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"The prompt file {path} could not be read ({error.strerror or error}); allow reading it, or give a copy."
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        yield where, line.strip() if path.suffix == ".txt" else _object(line, where)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not valid JSON ({error.msg} at column {error.colno}).") from error
    if not isinstance(row, dict):
        raise DataError(f"{where} must be a JSON object with a field 'prompt', got {type(row).__name__}.")
    return row


def _row(row: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Split a row into its text and its other columns."""
    if isinstance(row, Prompt):
        row = {"prompt": row.text, **row.columns}
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, Mapping):
        raise DataError(
            f"{where} must be a text or a mapping with a field 'prompt', got {type(row).__name__}."
        )
    columns = dict(row)
    text = columns.pop("prompt", None)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where} needs a non-empty text in its field 'prompt', got {text!r}.")
    for name in columns:
        if name in _RESERVED or not isinstance(name, str) or not name.isidentifier():
            raise DataError(
                f"{where} has a column {name!r}, but columns reach rewards as keyword arguments, so the name "
                f"must be an identifier other than {' and '.join(_RESERVED)}; rename it."
            )
    return text, columns
