"""Rows of text problems: which are empty, which no trainer could read, and what the refusals say."""

import json

import pytest

from imgrl.data.texts import load_rows
from imgrl.errors import ConfigError

pytest.importorskip("datasets")

SAID = [{"role": "user", "content": "a"}]
CALL = [
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
]


def read(tmp_path, row, needs, *more, **options):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (row, *more)))
    return load_rows(str(tmp_path / "rows.jsonl"), count=99, needs=needs, **options)


def refusal(tmp_path, *given, **options):
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, *given, **options)
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'rows.jsonl'} ") and "\n" not in said
    return said


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


SFT, DPO = ("prompt", "completion"), ("prompt", "chosen", "rejected")
HI = [{"role": "assistant", "content": "b"}]
SHAREGPT = [{"from": "human", "value": "a"}]


@pytest.mark.parametrize(
    ("row", "needs", "sentence"),
    [
        ({"prompt": 5}, ("prompt",), "has a number as 'prompt' in row 1, 5; write a text, or a conv"),
        ({"prompt": True}, ("prompt",), "has true or false as 'prompt' in row 1"),
        ({"prompt": {"role": "user", "content": "a"}}, ("prompt",), "has a mapping as 'prompt' in row 1"),
        ({"prompt": ["a", "b"]}, ("prompt",), 'has a list as \'prompt\' in row 1, ["a", "b"]'),
        ({"prompt": "a", "completion": 7}, SFT, "has a number as 'completion' in row 1, 7"),
        (
            {"prompt": SHAREGPT},
            ("prompt",),
            "a message without role and content in 'prompt' of row 1, {\"from\"",
        ),
        (
            {"prompt": [{"role": "user", "content": 5}]},
            ("prompt",),
            "without role and content in 'prompt' of row 1",
        ),
        ({"prompt": [{"content": "a"}]}, ("prompt",), "without role and content in 'prompt' of row 1"),
        (
            {"prompt": [{"role": "user", "content": None}, *SAID]},
            ("prompt",),
            "without role and content in 'prompt' of row 1",
        ),
        (
            {"prompt": SAID, "completion": "b"},
            SFT,
            "a conversation as 'prompt' in row 1, but a text as 'completion' in row 1; write all as texts, or all as",
        ),
        (
            {"prompt": "a", "completion": HI},
            SFT,
            "a text as 'prompt' in row 1, but a conversation as 'completion'",
        ),
        ({"prompt": SAID, "chosen": HI, "rejected": "c"}, DPO, "but a text as 'rejected' in row 1"),
        ({"prompt": "a", "chosen": HI, "rejected": "c"}, DPO, "but a conversation as 'chosen' in row 1"),
    ],
)
def test_what_no_trainer_can_read_is_refused(tmp_path, row, needs, sentence):
    assert sentence in refusal(tmp_path, row, needs)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        [*SAID, *CALL, {"role": "tool", "content": "3"}],
    ],
)
def test_parts_and_calls_of_tools_are_messages(tmp_path, messages):
    (row,) = read(tmp_path, {"prompt": messages}, ("prompt",))
    assert len(row["prompt"]) == len(messages)


def test_texts_and_conversations_do_not_mix_in_a_file(tmp_path):
    said = refusal(tmp_path, {"prompt": "a"}, ("prompt",), {"prompt": "b"}, {"prompt": SAID})
    assert (
        "has a text as 'prompt' in row 1, but a conversation as 'prompt' in row 3; write all as texts" in said
    )


def test_columns_that_only_a_verifier_reads_may_hold_anything(tmp_path):
    rows = read(tmp_path, {"prompt": SAID, "completion": 7}, SFT, spoken=("prompt",))
    assert rows == [{"prompt": SAID, "completion": 7}]


@pytest.mark.parametrize(
    ("row", "needs", "sentence"),
    [
        (
            {"messages": SAID + HI},
            SFT,
            "it has messages, but rows need prompt and completion: put all of messages but the last into "
            "'prompt' and the last, as a list of one, into 'completion'",
        ),
        (
            {"messages": SAID},
            ("prompt",),
            "but rows need prompt: put all of messages but the last into",
        ),
        ({"conversations": SHAREGPT}, SFT, "put all of conversations but the last into 'prompt'"),
        ({"messages": SAID}, DPO, "it has messages, but rows need prompt, chosen and rejected"),
        ({"text": "a b"}, SFT, "put the beginning of text into 'prompt' and the rest into 'completion'"),
        ({"text": "a b"}, ("prompt",), "but rows need prompt: put the beginning of text into 'prompt'"),
        (
            {"chosen": SAID + HI, "rejected": SAID},
            DPO,
            "put what chosen and rejected both begin with into 'prompt' and leave in them what follows",
        ),
        (
            {"chosen": "a b", "rejected": "a c"},
            SFT,
            "into 'prompt' and what follows in chosen into 'completion'",
        ),
        (
            {"prompt": "a"},
            {"answer", "prompt"},
            "no column 'answer' in row 1; it has prompt, but rows need prompt and",
        ),
    ],
)
def test_other_formats_are_refused_with_the_way_to_convert_them(tmp_path, row, needs, sentence):
    assert sentence in refusal(tmp_path, row, needs)


@pytest.mark.parametrize(
    ("equal", "which"), [([1, 2, 3], "all 3 rows"), ([2], "row 2"), ([2, 3], "2 rows, the first")]
)
@pytest.mark.parametrize("talk", [False, True])
def test_a_completion_is_not_preferred_to_itself(tmp_path, equal, which, talk):
    def said(text):
        return [{"role": "assistant", "content": text}] if talk else text

    rows = [
        {"prompt": said("a"), "chosen": said("b"), "rejected": said("b" if number in equal else "c")}
        for number in (1, 2, 3)
    ]
    assert f"has the same 'chosen' and 'rejected' in {which}" in refusal(tmp_path, rows[0], DPO, *rows[1:])


def test_other_columns_may_be_equal(tmp_path):
    assert read(tmp_path, {"prompt": "a", "completion": "a"}, SFT)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_has_no_rows(tmp_path, ending, text):
    file = tmp_path / f"rows.{ending}"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"rows.{ending} has no rows; one a problem is expected"):
        load_rows(str(file), count=1, needs=("prompt",))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            b"{broken",
            r"line 4 is no JSON \(.* at character 2\); one object a line is expected, such as {\"prompt\"",
        ),
        (b'{"prompt": "\xff"}', r"line 4 is no JSON \(.*utf-8.*\)"),
        (b"[1, 2]", "line 4 is no JSON object; one a line is expected"),
    ],
)
def test_the_broken_line_is_counted_as_in_the_file(tmp_path, capfd, line, why):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n\n{"prompt": "b"}\n' + line + b"\n")
    with pytest.raises(ConfigError, match=f"rows.jsonl cannot be read as json: {why}"):
        load_rows(str(file), count=1, needs=("prompt",))
    assert "Failed to load" not in capfd.readouterr().err


def test_a_file_is_read_whole_unless_a_number_is_given(tmp_path):
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"prompt": str(i)}) + "\n" for i in range(5000)))
    assert len(load_rows(str(file), count=None, needs=("prompt",))) == 5000
    assert len(load_rows(str(file), count=7, needs=("prompt",))) == 7
    assert len(load_rows("arithmetic:train", count=None, needs=("prompt",))) == 4096
