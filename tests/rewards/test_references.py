"""Reference images: where they come from, how they are cut, what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from imgrl.errors import DataError
from imgrl.rewards.references import fit, load_references


def paint(file, seed=0, size=(16, 16)):
    file.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(levels).save(file)
    return torch.from_numpy(levels).permute(2, 0, 1)


def test_a_folder_with_its_subfolders(tmp_path):
    expected = [paint(tmp_path / name, seed) for seed, name in enumerate(["a.png", "b/c.png"])]
    (tmp_path / "notes.txt").write_text("no picture")
    found = load_references(tmp_path, height=16, width=16)
    assert found.files == (str(tmp_path / "a.png"), str(tmp_path / "b/c.png"))
    assert torch.equal(found.images, torch.stack(expected)) and found.of_prompt == {}
    listed = load_references([tmp_path / "b/c.png", tmp_path / "a.png"], height=16, width=16)
    assert torch.equal(listed.images, torch.stack(expected[::-1]))


def test_a_folder_of_scans(tmp_path):
    expected = [paint(tmp_path / name, seed) for seed, name in enumerate(["a.tif", "b.TIFF"])]
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "c.jfif", "JPEG")
    found = load_references(tmp_path, height=16, width=16)
    assert found.files == tuple(str(tmp_path / name) for name in ("a.tif", "b.TIFF", "c.jfif"))
    assert torch.equal(found.images[:2], torch.stack(expected))


def test_prompts_with_their_own(tmp_path):
    for seed, name in enumerate("abc"):
        paint(tmp_path / f"{name}.png", seed)
    rows = [{"prompt": "x", "refs": ["a.png", "b.png"]}, {"prompt": "y", "refs": ["c.png", "a.png"]}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = load_references(tmp_path / "r.jsonl", height=16, width=16)
    assert found.of_prompt == {"x": (0, 1), "y": (2, 0)} and len(found.images) == 3
    drawn = found.draw(["x", "y"] * 200, torch.Generator().manual_seed(0)).view(-1, 2)
    assert set(drawn[:, 0].tolist()) == {0, 1} and set(drawn[:, 1].tolist()) == {0, 2}
    with pytest.raises(DataError, match="There is no reference image for the prompt 'z'"):
        found.draw(["z"], torch.Generator())


def test_prompts_without_a_picture_are_told_where_prompts_have_pictures(tmp_path):
    for seed, name in enumerate("ab"):
        paint(tmp_path / f"{name}.png", seed)
    (tmp_path / "r.csv").write_text("file,prompt\na.png,x\nb.png,y\n")
    assert load_references(tmp_path / "r.csv", height=16, width=16).lacking(["z", "x", "w", "z"]) == [
        "z",
        "w",
    ]
    assert load_references(tmp_path, height=16, width=16).lacking(["z"]) == []


def test_without_prompts_all_are_drawn(tmp_path):
    for seed in range(5):
        paint(tmp_path / f"{seed}.png", seed)
    found = load_references(tmp_path, height=16, width=16)
    assert set(found.draw(["any"] * 200, torch.Generator().manual_seed(0)).tolist()) == set(range(5))


def test_nothing_is_distorted():
    """A wide picture of three equal bars, cut to a square: the middle bar alone, and a ramp keeps its slope."""
    bars = Image.new("RGB", (48, 16))
    bars.paste((255, 255, 255), (16, 0, 32, 16))
    assert torch.equal(fit(bars, 16, 16), torch.full((3, 16, 16), 255, dtype=torch.uint8))
    assert fit(bars, 32, 64).shape == (3, 32, 64)


def test_every_fault_is_listed_at_once(tmp_path):
    paint(tmp_path / "a.png", 1)
    paint(tmp_path / "copy.png", 1)
    paint(tmp_path / "small.png", 2, size=(7, 40))
    Image.new("CMYK", (16, 16)).save(tmp_path / "print.jpg")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError) as told:
        load_references(tmp_path, height=16, width=16)
    message = str(told.value)
    assert message.startswith("4 of 5 reference images cannot be used; mend or remove them: ")
    assert f"copy.png is the same picture as {tmp_path / 'a.png'}" in message
    for part in ("small.png is only 7 x 40", "print.jpg is CMYK", "text.png cannot be read"):
        assert part in message


def test_pictures_that_are_not_read_are_faults_and_not_passed_over(tmp_path):
    paint(tmp_path / "a.png")
    Image.new("P", (16, 16)).save(tmp_path / "moving.gif")
    for name in ("telephone.HEIC", "b/telephone.heif", "web.avif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    (tmp_path / "broken.bmp").write_bytes(b"BM")
    deep = np.full((16, 16), 40_000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "scan.tif")
    with pytest.raises(DataError) as told:
        load_references(tmp_path, height=16, width=16)
    message = str(told.value)
    assert message.startswith("6 of 7 reference images cannot be used; mend or remove them: ")
    for part in (
        "moving.gif is a .gif file; save it as .png",
        "telephone.HEIC is a .heic file",
        "telephone.heif is a .heif file",
        "web.avif is a .avif file",
        "broken.bmp cannot be read",
        "scan.tif has more than 8 bits a channel",
    ):
        assert part in message


def test_a_long_list_of_faults_is_cut(tmp_path):
    with pytest.raises(DataError, match=r"20 of 20 .* /f11.png is missing and 8 more\."):
        load_references([f"/f{i}.png" for i in range(20)], height=16, width=16)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"r.jsonl:1 is not valid JSON"),
        ('{"prompt": "x"}', r'r.jsonl:1 must look like {"prompt": "a text", "refs"'),
        ('{"prompt": "x", "refs": [7]}', "r.jsonl:1 must look like"),
        ('{"prompt": "x", "refs": ["gone.png"]}', "gone.png is missing"),
        ("", "At least 1 reference images are needed, but .*r.jsonl has 0"),
        ("\udcff", r"is not UTF-8 text \(byte 0\)"),
    ],
)
def test_files_that_say_nothing(tmp_path, text, sentence):
    (tmp_path / "r.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=sentence):
        load_references(tmp_path / "r.jsonl", height=16, width=16)


def test_too_few_or_none(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        load_references(tmp_path, height=16, width=16)
    with pytest.raises(DataError, match="a folder of pictures, .*gone is none"):
        load_references(tmp_path / "gone", height=16, width=16)
    paint(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"At least 2 reference images are needed, but .* has 1; add some\."):
        load_references(tmp_path, height=16, width=16, least=2)
    with pytest.raises(DataError, match="At least 2 reference images are needed, but world:plain:1 has 1"):
        load_references("world:plain:1", height=16, width=16, least=2)
    with pytest.raises(DataError, match=r"At least 1 reference images are needed, but the list has 0"):
        load_references([], height=16, width=16)


def test_a_text_file_lists_pictures_beside_it(tmp_path):
    for seed, name in enumerate("abc"):
        paint(tmp_path / f"{name}.png", seed)
    (tmp_path / "some.txt").write_text("a.png\n\nc.png\n")
    found = load_references(tmp_path / "some.txt", height=16, width=16)
    assert found.files == tuple(str(tmp_path / name) for name in ("a.png", "c.png")) and not found.of_prompt


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "some.txt").write_bytes(b"a.png\n\xff")
    with pytest.raises(DataError, match=r"some.txt is not UTF-8 text \(byte 6\)"):
        load_references(tmp_path / "some.txt", height=16, width=16)


def test_pictures_of_the_embedded_world():
    found = load_references("world:pastel:5", height=64, width=64)
    assert (
        found.images.shape == (5, 3, 64, 64)
        and len(load_references("world:noise", height=8, width=8).files) == 100
    )
    for wrong in ("world:cubist", "world:pastel:many", "world:pastel:0", "world:pastel:5:5"):
        with pytest.raises(DataError, match="Rendered references are world:STYLE"):
            load_references(wrong, height=16, width=16)
