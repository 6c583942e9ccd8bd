"""Rows of text problems: which are empty."""

import json

import pytest

from imgrl.data.texts import load_rows
from imgrl.errors import ConfigError

pytest.importorskip("datasets")

SAID = [{"role": "user", "content": "a"}]
CALL = [
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
]


def read(tmp_path, row, needs):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return load_rows(str(tmp_path / "rows.jsonl"), count=1, needs=needs)


@pytest.mark.parametrize("answers", [[], ["x", ""], [1]])
def test_a_list_that_is_no_conversation_may_hold_anything(tmp_path, answers):
    (row,) = read(tmp_path, {"prompt": "a", "answers": answers}, ("prompt", "answers"))
    assert row["answers"] == answers


def test_a_conversation_may_end_in_the_call_of_a_tool(tmp_path):
    assert read(tmp_path, {"prompt": SAID, "completion": CALL}, ("prompt", "completion"))


@pytest.mark.parametrize(
    "value", [[], [{"role": "user", "content": " "}], [{"role": "user", "content": None}], ""]
)
@pytest.mark.parametrize("column", ["prompt", "completion", "chosen", "rejected"])
def test_what_says_nothing_is_refused(tmp_path, column, value):
    with pytest.raises(ConfigError, match=f"empty '{column}' in row 1; fill it or drop the row"):
        read(tmp_path, {column: value}, (column,))
