"""The file of the reward cache: exact, shared by processes, and refused with a sentence if it is something else."""

import math
import multiprocessing
import sqlite3

import pytest
import torch

from imgrl.errors import RewardError
from imgrl.rewards.cache import Cache


def keys(*numbers):
    return [bytes([n]) * 32 for n in numbers]


def test_numbers_are_kept_exactly(tmp_path):
    scores = torch.tensor([0.1, -3e38, math.nan, 0.0])
    Cache(tmp_path / "deep" / "down" / "scores.db").put(keys(1, 2, 3, 4), scores)
    found = Cache(tmp_path / "deep" / "down" / "scores.db").get(keys(1, 2, 3, 4, 5))
    assert found == {**dict(zip(keys(1, 2, 4), scores[[0, 1, 3]].tolist(), strict=True)), keys(3)[0]: None}


def test_more_keys_than_one_query_takes(tmp_path):
    cache, many = Cache(tmp_path / "scores.db"), [n.to_bytes(32, "big") for n in range(1201)]
    cache.put(many, torch.arange(1201.0))
    assert cache.get(many) == {key: float(n) for n, key in enumerate(many)}


def write(path, first, together):
    together.wait(30)
    cache = Cache(path)
    for number in range(first, first + 60):
        cache.put([number.to_bytes(32, "big")], torch.tensor([float(number)]))
        assert cache.get([number.to_bytes(32, "big")])


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs processes that start at once"
)
def test_several_processes_share_one_file(tmp_path):
    """They make the file and write at once; nothing is lost."""
    context, path = multiprocessing.get_context("fork"), tmp_path / "scores.db"
    together = context.Barrier(3)
    writers = [context.Process(target=write, args=(path, first, together)) for first in (0, 40, 80)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    every = [number.to_bytes(32, "big") for number in range(140)]
    assert Cache(path).get(every) == {key: float(number) for number, key in enumerate(every)}


def foreign(path):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE photos (name TEXT)")


def later_format(path):
    Cache(path).close()
    with sqlite3.connect(path) as ours:
        ours.execute("PRAGMA user_version = 9")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda path: path.write_bytes(b"not a database, but long enough to be read as one " * 40),
            "not a database",
        ),
        (foreign, "a database of something else"),
        (later_format, "format 9, this version reads 1"),
        (lambda path: path.mkdir(), "unable to open"),
    ],
)
def test_a_file_that_is_something_else(tmp_path, make, reason):
    path = tmp_path / "scores.db"
    make(path)
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(RewardError) as caught:
        Cache(path)
    said = str(caught.value)
    assert (
        said.startswith(f"The reward cache {path} cannot be used (") and reason in said and "\n" not in said
    )
    assert "delete it, or set scoring.cache" in said
    assert before is None or path.read_bytes() == before  # what is not ours is left alone


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RewardError, match="cannot be used"):
        Cache(tmp_path / "file" / "scores.db")


def test_a_file_that_is_damaged_inside(tmp_path):
    path = tmp_path / "scores.db"
    cache, many = Cache(path), [n.to_bytes(32, "big") for n in range(2000)]
    cache.put(many, torch.arange(2000.0))
    cache.close()  # the last to close folds the log into the file
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(RewardError, match="cannot be used .*malformed"):
        Cache(path).get(many)


def test_a_score_that_is_no_number(tmp_path):
    Cache(tmp_path / "scores.db").close()
    with sqlite3.connect(tmp_path / "scores.db") as other:
        other.execute("INSERT INTO scores VALUES (?, 'high')", keys(1))
    with pytest.raises(RewardError, match="holds scores that are no numbers"):
        Cache(tmp_path / "scores.db").get(keys(1))
