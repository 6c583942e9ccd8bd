"""Pictures and their prompts, matched by order and by name."""

import json

import pytest
import torch
from PIL import Image

from imgrl.data.pairs import load_images, load_pairs
from imgrl.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for level, name in enumerate(["b.png", "a.png", "c.JPG"]):
        Image.new("RGB", (8 + 8 * level, 16), (10 * level, 20, 30)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def rows(folder, *given):
    file = folder / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, given)))
    return file


def test_in_the_order_of_names(folder):
    (folder / "p.txt").write_text("first\n\nsame\nsame\n")
    pairs = load_pairs(folder, folder / "p.txt")
    assert [(pair.file.name, pair.prompt.text, pair.size) for pair in pairs] == [
        ("a.png", "first", (16, 16)),
        ("b.png", "same", (16, 8)),
        ("c.JPG", "same", (16, 24)),
    ]
    assert [pair.prompt.id for pair in pairs] == [0, 1, 2]


def test_a_picture_of_another_kind_is_not_passed_over(folder):
    """Left out, it would shift the prompts of those after it; where rows name their files, it may lie there."""
    Image.new("P", (16, 16)).save(folder / "aa.gif")
    (folder / "p.txt").write_text("1\n2\n3\n4")
    with pytest.raises(DataError, match=r"1 pictures cannot be scored; .*aa\.gif is a \.gif file"):
        load_pairs(folder, folder / "p.txt")
    (pair,) = load_pairs(folder, rows(folder, {"file": "a.png", "prompt": "x"}))
    assert pair.file.name == "a.png"


def test_columns_without_files_keep_the_order(folder):
    file = rows(folder, *({"prompt": f"p{i}", "tag": i} for i in range(3)))
    pairs = load_pairs(folder, file)
    assert [(pair.file.name, pair.prompt.columns) for pair in pairs][:2] == [
        ("a.png", {"tag": 0}),
        ("b.png", {"tag": 1}),
    ]


def test_rows_that_name_their_files(folder):
    file = rows(folder, {"file": "c.JPG", "prompt": "x", "tag": "t"}, {"file": "a.png", "prompt": "y"})
    pairs = load_pairs(folder, file)
    assert [(pair.file.name, pair.prompt.text, pair.prompt.columns) for pair in pairs] == [
        ("c.JPG", "x", {"tag": "t"}),
        ("a.png", "y", {}),
    ]


def test_pixels(folder):
    (folder / "p.txt").write_text("x\ny\nz")
    images = load_images(load_pairs(folder, folder / "p.txt")[:1])
    expected = torch.tensor([10, 20, 30]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255
    torch.testing.assert_close(images, expected, atol=0, rtol=0)


def test_a_file_that_changes_meanwhile(folder):
    (folder / "p.txt").write_text("x\ny\nz")
    pairs = load_pairs(folder, folder / "p.txt")
    Image.new("RGB", (99, 99)).save(folder / "a.png")
    with pytest.raises(DataError, match="a.png changed while it was being read"):
        load_images(pairs[:1])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([{"prompt": "x"}] * 2, r"has 3 pictures and .*p.jsonl has 2 prompts; give as many"),
        ([{"prompt": "x", "file": "gone.png"}], r"p.jsonl:1: there is no file .*gone.png"),
        ([{"prompt": "x", "file": 7}], r"p.jsonl:1: `file` must be the path of a picture"),
        (
            [{"prompt": "x", "file": "a.png"}, {"prompt": "y"}],
            r"p.jsonl:2 names no `file`, but other rows do",
        ),
        ([{"prompt": "x", "file": "a.png"}] * 2, r"p.jsonl:2 names .*a.png again, after .*p.jsonl:1"),
        ([{"prompt": "x", "file": "notes.txt"}], r"1 pictures cannot be scored; .*notes.txt cannot be read"),
        ([{"prompt": "", "file": "a.png"}], r"p.jsonl:1 needs a non-empty text"),
        ([7], r"p.jsonl:1 must be a JSON object"),
    ],
)
def test_what_does_not_match(folder, given, sentence):
    with pytest.raises(DataError, match=sentence):
        load_pairs(folder, rows(folder, *given))


def test_no_folder_or_nothing_in_it(tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        load_pairs(tmp_path / "gone", tmp_path / "p.txt")
    with pytest.raises(DataError, match="holds no pictures"):
        load_pairs(tmp_path, tmp_path / "p.txt")
