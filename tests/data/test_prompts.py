"""Prompt files: what is read, and the sentence for everything that is not."""

from pathlib import Path

import pytest

from imgrl.data import load_prompts
from imgrl.errors import DataError
from imgrl.types import Prompt


def test_text_files_skip_blank_lines(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a cat\n\n  a dog  \n", encoding="utf-8-sig")
    assert load_prompts(str(path)) == [Prompt(id=0, text="a cat"), Prompt(id=1, text="a dog")]


def test_json_lines_carry_columns(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a cat", "tag": "x", "include": [{"class": "cat"}]}\n{"prompt": "a dog"}\n')
    first, second = load_prompts(path)
    assert first.columns == {"tag": "x", "include": [{"class": "cat"}]} and first.id == 0
    assert second == Prompt(id=1, text="a dog")


def test_lists_are_renumbered():
    given = ["a", {"prompt": "b", "n": 1}, Prompt(id=9, text="c", columns={"n": 2})]
    assert load_prompts(given) == [
        Prompt(id=0, text="a"),
        Prompt(id=1, text="b", columns={"n": 1}),
        Prompt(id=2, text="c", columns={"n": 2}),
    ]


def test_world_sets_share_no_prompt():
    for kind in ("world:", "world:text-"):
        train, heldout = load_prompts(f"{kind}train"), load_prompts(f"{kind}heldout")
        assert train and heldout and not {p.text for p in train} & {p.text for p in heldout}
        assert {"tag", "include"} <= train[0].columns.keys()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.txt", "", "At least one prompt is needed, but .*p.txt has none"),
        ("p.txt", "a cat\n \na cat\n", r"p.txt:3 repeats .*p.txt:1 \('a cat'\); remove one"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', "p.jsonl:2 is not valid JSON"),
        ("p.jsonl", '["a"]\n', "p.jsonl:1 must be a JSON object with a field 'prompt', got list"),
        ("p.jsonl", '{"text": "a"}\n', "p.jsonl:1 needs a non-empty text in its field 'prompt', got None"),
        ("p.jsonl", '{"prompt": 3}\n', "needs a non-empty text in its field 'prompt', got 3"),
        ("p.jsonl", '{"prompt": "a", "images": 1}\n', "has a column 'images'"),
        ("p.jsonl", '{"prompt": "a", "my tag": 1}\n', "has a column 'my tag'"),
        ("p.csv", "a\n", "Prompt files end in .txt or .jsonl, got .*p.csv"),
    ],
)
def test_malformed_files(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=sentence):
        load_prompts(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="There is no prompt file /.*missing.txt"):
        load_prompts(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match="latin.txt is not UTF-8 text .byte 3"):
        load_prompts(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("world:moon", "There is no prompt set 'world:moon'; the sets are world:train"),
        ([], "At least one prompt is needed, but the list has none"),
        (["a", 3], "entry 1 must be a text or a mapping"),
        (["a", " "], "entry 1 needs a non-empty text"),
        (7, "must be a file, a 'world:' name or a list, got int"),
    ],
)
def test_other_wrong_sources(source, sentence):
    with pytest.raises(DataError, match=sentence):
        load_prompts(source)


def test_a_file_that_fails_on_reading(tmp_path):
    """Permissions do not stop root; reading a process's memory from its start fails for everybody."""
    memory = Path("/proc/self/mem")
    if not memory.exists():
        pytest.skip("needs Linux's /proc")
    (tmp_path / "p.txt").symlink_to(memory)
    with pytest.raises(DataError, match="p.txt could not be read .*allow reading it, or give a copy"):
        load_prompts(tmp_path / "p.txt")
