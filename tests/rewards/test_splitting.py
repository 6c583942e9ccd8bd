"""Which references are kept back, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from imgrl.errors import DataError
from imgrl.rewards.references import load_references
from imgrl.rewards.splitting import split_references


def pictures(folder, count):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def test_every_fifth_picture_is_held_out_and_none_is_in_both(tmp_path):
    train, heldout = split_references(str(pictures(tmp_path / "own", 12)), tmp_path / "run")
    kept, held = (load_references(file, height=8, width=8).files for file in (train, heldout))
    assert [file[-6:] for file in held] == ["04.png", "09.png"]
    assert len(kept) == 10 and not set(kept) & set(held)


def test_lists_hold_from_any_folder(tmp_path, monkeypatch):
    pictures(tmp_path / "own", 10)
    monkeypatch.chdir(tmp_path)
    train, _ = split_references("own", tmp_path / "run")
    monkeypatch.chdir("/")
    assert len(load_references(train, height=8, width=8).images) == 8


def test_captions_are_held_out_prompt_by_prompt(tmp_path):
    """Ten pictures of five prompts, two each: the fifth prompt goes with both of its own."""
    folder = pictures(tmp_path / "own", 10)
    lines = [f"{n:02d}.png,prompt {n // 2}" for n in range(10)]
    (folder / "captions.csv").write_text("\n".join(["file,prompt", *lines]) + "\n")
    train, heldout = split_references(str(folder / "captions.csv"), tmp_path / "run")
    rows = [json.loads(line) for line in heldout.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["prompt 4"]
    assert [ref[-6:] for ref in rows[0]["refs"]] == ["08.png", "09.png"]
    assert sorted(load_references(train, height=8, width=8).of_prompt) == [f"prompt {n}" for n in range(4)]


def test_a_picture_of_a_training_prompt_is_never_held_out(tmp_path):
    folder = pictures(tmp_path / "own", 11)
    rows = [{"prompt": f"p{n}", "refs": [f"{2 * n:02d}.png", f"{2 * n + 1:02d}.png"]} for n in range(4)]
    rows.append({"prompt": "p4", "refs": ["00.png", "08.png", "09.png"]})
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, heldout = split_references(str(folder / "list.jsonl"), tmp_path / "run")
    assert [ref[-6:] for ref in json.loads(heldout.read_text())["refs"]] == ["08.png", "09.png"]


def test_captions_that_leave_too_few_are_refused(tmp_path):
    folder = pictures(tmp_path / "own", 10)
    rows = [{"prompt": f"p{n}", "refs": [f"{n:02d}.png" for n in range(10)]} for n in range(3)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        DataError, match="two reference images are held out, every 5th prompt .* 3 prompts leave"
    ):
        split_references(str(folder / "list.jsonl"), tmp_path / "run")


def test_fewer_than_ten_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="At least 10 reference images are needed, but .* has 9; add some"):
        split_references(str(pictures(tmp_path / "own", 9)), tmp_path / "run")


def test_rendered_references_become_the_same_pictures_on_disk(tmp_path):
    train, heldout = split_references("world:pastel:10", tmp_path / "run")
    made = load_references("world:pastel:10", height=64, width=64).images
    read = load_references(train, height=64, width=64).images
    assert (read == made[[0, 1, 2, 3, 5, 6, 7, 8]]).all()
    assert (load_references(heldout, height=64, width=64).images == made[[4, 9]]).all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image,caption\n00.png,a\n", "must have the columns file and prompt, but its first line names"),
        ("file,prompt\n00.png,\n", "Row 2 of .* must have a file and a prompt, got '00.png' and ''"),
    ],
)
def test_a_table_of_captions_must_be_whole(tmp_path, text, told):
    folder = pictures(tmp_path / "own", 2)
    (folder / "captions.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        load_references(folder / "captions.csv", height=8, width=8)
