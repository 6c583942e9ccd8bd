"""Scores kept between runs, in one SQLite file that several processes may share.

A score is found again by the image in 8 bits, its prompt, the columns that its reward was given, and the reward's
identity; so that the score is a function of these, a cached reward is handed the image in 8 bits as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.pixels import to_uint8
from imgrl.types import Prompt

__all__ = ["Cache", "eight_bits", "score_keys"]

_OURS = 0x494D524C  # "IMRL": SQLite's application id of these files
_FORMAT = 1
_AT_ONCE = 500  # parameters of one query
_PATIENCE = 30.0  # seconds to wait for another process's write


def eight_bits(images: Tensor) -> Tensor:
    """Return images [n, 3, H, W] in [0, 1] with every value rounded to one of 256 levels."""
    levels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).contiguous()
    return levels.float().div(255).to(images.device)


def score_keys(
    identity: str, images: Tensor, prompts: Sequence[Prompt], columns: Sequence[str], *, name: str
) -> list[bytes]:
    """Return the key of each image's score: 32 bytes.

    Raises:
        RewardError: if a column holds what JSON cannot say, so that two values could not be told apart.
    """
    keys = []
    for pixels, prompt in zip(to_uint8(images), prompts, strict=True):
        passed = {column: prompt.columns.get(column) for column in columns}
        try:
            head = json.dumps([identity, pixels.shape, prompt.text, passed], sort_keys=True)
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"Reward {name!r} cannot be cached, because a column of prompt {prompt.text!r} cannot be written as "
                f"JSON ({error}); leave out scoring.cache (or --cache) or declare `cacheable = False` on the reward."
            ) from error
        keys.append(hashlib.sha256(head.encode() + b"\0" + pixels.tobytes()).digest())
    return keys


class Cache:
    """Scores by key; a score is a number, or None where the reward does not apply.

    Args:
        path: of the file, made with its folder if it does not exist.

    Raises:
        RewardError: if the file cannot be used, or is something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()  # a reward server asks from several threads
        with self._sentence():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(
                self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._claim()
            self._write_ahead()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float | None]:
        """Return the scores that are known, by key."""
        found: dict[bytes, float | None] = {}
        with self._lock, self._sentence():
            for first in range(0, len(keys), _AT_ONCE):
                part = keys[first : first + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, value FROM scores WHERE key IN ({marks})"
                found.update(self._file.execute(query, part).fetchall())
        if any(value is not None and not isinstance(value, float) for value in found.values()):
            raise self._refusal("it holds scores that are no numbers")
        return found

    def put(self, keys: Sequence[bytes], scores: Tensor) -> None:
        """Keep scores float [n], NaN for "does not apply"."""
        rows = [
            (key, None if math.isnan(score) else score)
            for key, score in zip(keys, scores.tolist(), strict=True)
        ]
        with self._lock, self._sentence():
            self._file.execute("BEGIN IMMEDIATE")
            try:
                self._file.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)
                self._file.execute("COMMIT")
            except sqlite3.Error:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file; what is in it stays."""
        self._file.close()

    def _claim(self) -> None:
        """Make the table in a new file; refuse a file that somebody else made."""
        self._file.execute("BEGIN IMMEDIATE")
        (owner,) = self._file.execute("PRAGMA application_id").fetchone()
        (number,) = self._file.execute("PRAGMA user_version").fetchone()
        (tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables and not owner:
            self._file.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, value REAL) WITHOUT ROWID")
            self._file.execute(f"PRAGMA application_id = {_OURS}")
            self._file.execute(f"PRAGMA user_version = {_FORMAT}")
        elif owner != _OURS:
            raise self._refusal("it is a database of something else")
        elif number != _FORMAT:
            raise self._refusal(f"it has format {number}, this version reads {_FORMAT}")
        self._file.execute("COMMIT")

    def _write_ahead(self) -> None:
        """Let others read while one writes. SQLite does not wait for its turn to switch, so this does."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._file.execute("PRAGMA journal_mode = WAL")
                self._file.execute("PRAGMA synchronous = NORMAL")  # a crash loses scores, never the file
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _sentence(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._refusal(str(error)) from error

    def _refusal(self, reason: str) -> RewardError:
        return RewardError(
            f"The reward cache {self.path} cannot be used ({reason}); delete it, or set scoring.cache (or --cache) to "
            "another file."
        )
