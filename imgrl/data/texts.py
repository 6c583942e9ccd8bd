"""Problems for language models: the built-in arithmetic, or a file of rows."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imgrl.data.conversations import SPOKEN, check_said, conversion
from imgrl.errors import ConfigError

__all__ = ["load_rows"]

_ROW = '{"prompt": "…", "answer": "…"}'
_BUILT_IN = 4096  # problems where no number is given
_SMALL = 1 << 20  # bytes; no larger file is looked through for being blank
_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(
    source: str, *, count: int | None, seed: int = 0, needs: Collection[str], spoken: Collection[str] = SPOKEN
) -> list[dict[str, Any]]:
    """Rows with at least the columns ``needs``.

    Args:
        source: ``arithmetic:train``, ``arithmetic:heldout``, or a .jsonl, .json, .csv or .parquet file.
        count: how many built-in problems, or at most how many rows of a file; None is 4096 and all.
        seed: of the built-in problems.
        needs: columns that must be there and must not be empty.
        spoken: those of them that must be texts or conversations, all of one kind; in others a list may be anything,
            empty as well.

    Raises:
        ConfigError: in one sentence, with the row where there is one.
    """
    name, _, split = source.partition(":")
    if name == "arithmetic":
        rows = _arithmetic(split, _BUILT_IN if count is None else count, seed)
    else:
        rows = _file(Path(source))[:count]
    if not rows:
        raise ConfigError(f"{source} has no rows; one a problem is expected")
    for number, row in enumerate(rows, 1):
        for column in needs:
            if column not in row:
                raise ConfigError(
                    f"{source} has no column {column!r} in row {number}; it has {', '.join(row)}{_instead(row, needs)}"
                )
            if _empty(row[column], spoken=column in spoken):
                raise ConfigError(
                    f"{source} has an empty {column!r} in row {number}; fill it or drop the row"
                )
    check_said(source, rows, [column for column in SPOKEN if column in needs and column in spoken])
    return rows


def _instead(row: Mapping[str, Any], needs: Collection[str]) -> str:
    """Which columns a row needs, and how those it has become them."""
    told = conversion(row, needs)
    wanted = sorted(needs, key=lambda name: SPOKEN.index(name) if name in SPOKEN else len(SPOKEN))
    listed = " and ".join([", ".join(wanted[:-1]), wanted[-1]] if len(wanted) > 1 else wanted)
    return f", but rows need {listed}{f': {told}' if told else ''}"


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
        with _quiet():
            data: Any = load_dataset(_READERS[path.suffix], data_files=str(path), split="train")
        return list(data)
    except Exception as error:  # one library, many parsers, each with errors of its own
        if path.stat().st_size < _SMALL and not path.read_bytes().strip():
            return []
        cause = (_broken_line(path) if path.suffix == ".jsonl" else None) or error.__cause__ or error
        raise ConfigError(f"{path} cannot be read as {_READERS[path.suffix]}: {cause}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what ``datasets`` logs of a file before it raises the same."""
    from datasets.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _broken_line(path: Path) -> str | None:
    """The first line that is no JSON object; the library counts rows from where it began to read."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line) if line.strip() else {}
            except ValueError as error:  # also of bytes that are no UTF-8
                why = (
                    f"{error.msg} at character {error.colno}"
                    if isinstance(error, json.JSONDecodeError)
                    else error
                )
                return f"line {number} is no JSON ({why}); one object a line is expected, such as {_ROW}"
            if not isinstance(value, dict):
                return f"line {number} is no JSON object; one a line is expected, such as {_ROW}"
    return None
