"""Problems for language models: the built-in arithmetic, or a file of rows."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from imgrl.errors import ConfigError

__all__ = ["load_rows"]

_SPOKEN = ("prompt", "completion", "chosen", "rejected")
"""Columns in which a list is a conversation; in others it may be anything, empty as well."""

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(source: str, *, count: int, seed: int = 0, needs: Collection[str]) -> list[dict[str, Any]]:
    """Rows with at least the columns ``needs``.

    Args:
        source: ``arithmetic:train``, ``arithmetic:heldout``, or a .jsonl, .json, .csv or .parquet file.
        count: how many built-in problems, or at most how many rows of a file.
        seed: of the built-in problems.
        needs: columns that must be there and must not be empty.

    Raises:
        ConfigError: in one sentence, with the row where there is one.
    """
    name, _, split = source.partition(":")
    if name == "arithmetic":
        rows = _arithmetic(split, count, seed)
    else:
        rows = _file(Path(source))[:count]
    if not rows:
        raise ConfigError(f"{source} has no rows; one a problem is expected")
    for number, row in enumerate(rows, 1):
        for column in needs:
            if column not in row:
                raise ConfigError(
                    f"{source} has no column {column!r} in row {number}; it has {', '.join(row)}"
                )
            if _empty(row[column], spoken=column in _SPOKEN):
                raise ConfigError(
                    f"{source} has an empty {column!r} in row {number}; fill it or drop the row"
                )
    return rows


def _empty(value: Any, *, spoken: bool) -> bool:
    """Whether it says nothing: no value, a blank text, or, of what is spoken, a conversation that ends in nothing."""
    if spoken and isinstance(value, list):
        value = value[-1] if value else None
        if isinstance(value, dict) and not value.get("tool_calls"):
            value = value.get("content", value)
    return value is None or not str(value).strip()


def _arithmetic(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    import numpy as np

    from imgrl.world import arithmetic
    from imgrl.world.mistakes import mistaken

    if split not in ("train", "heldout"):
        raise ConfigError(f"arithmetic has the splits train and heldout, got 'arithmetic:{split}'")
    try:
        problems = arithmetic.problems(count, split=split, seed=seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return [
        {
            "prompt": p.prompt,
            "completion": p.solution,
            "chosen": p.solution,
            "rejected": mistaken(p, np.random.default_rng([seed, i])),
            "answer": p.answer,
            "task": p.task,
            "level": p.level,
        }
        for i, p in enumerate(problems)
    ]


def _file(path: Path) -> list[dict[str, Any]]:
    if path.suffix not in _READERS:
        raise ConfigError(
            f"{path} is no source of problems: give arithmetic:train, or a file ending in {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    from datasets import load_dataset

    try:
        data: Any = load_dataset(_READERS[path.suffix], data_files=str(path), split="train")
        return list(data)
    except Exception as error:  # one library, many parsers, each with errors of its own
        cause = error.__cause__ or error
        raise ConfigError(f"{path} cannot be read as {_READERS[path.suffix]}: {cause}") from error
