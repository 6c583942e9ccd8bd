"""Reference images: what a learning reward takes for good, and what a style is learned from.

They come as a folder of pictures, as a file that lists them, as a JSON-lines or CSV file that gives prompts theirs, as
a list, or rendered by the embedded world. Whatever is wrong with them is said at once, before anything expensive
starts.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgrl.data.pictures import ENDINGS, is_picture, read_picture
from imgrl.errors import DataError

__all__ = ["References", "fit", "load_references"]

_MOST_TOLD = 12


@dataclass(frozen=True)
class References:
    """Pictures of one size, some of them perhaps for certain prompts only."""

    images: Tensor
    """uint8 [n, 3, H, W]"""
    files: tuple[str, ...]
    """Where each comes from."""
    of_prompt: dict[str, tuple[int, ...]]
    """Prompt -> its rows; empty where references belong to no prompt."""
    captions: tuple[tuple[str, int], ...] = ()
    """(what it shows, row) of every caption, also where :meth:`draw` minds no prompt; empty where nothing is known."""

    def lacking(self, prompts: Sequence[str]) -> list[str]:
        """Those of the prompts, each once, that have no picture although prompts have pictures."""
        if not self.of_prompt:
            return []
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.of_prompt]

    def draw(self, prompts: Sequence[str], generator: torch.Generator) -> Tensor:
        """One row for each prompt, int64 [n]: of its own pictures where prompts have some, else of all.

        Raises:
            DataError: if prompts have pictures and this one has none.
        """
        if not self.of_prompt:
            return torch.randint(len(self.images), (len(prompts),), generator=generator)
        rows = []
        for prompt in prompts:
            own = self.of_prompt.get(prompt)
            if not own:
                raise DataError(
                    f"There is no reference image for the prompt {prompt!r}; add one, or give no prompts."
                )
            rows.append(own[int(torch.randint(len(own), (), generator=generator))])
        return torch.tensor(rows)

    def draw_captioned(self, prompts: Sequence[str], generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """One row for each prompt, int64 [n], and what it shows: a picture of the prompt where there is one.

        Other prompts get any picture with its own caption.

        Raises:
            DataError: if no picture has a caption.
        """
        if not self.captions:
            raise DataError("None of the reference images has a caption; name them in a .csv or .jsonl file.")
        rows, texts = [], []
        for prompt in prompts:
            own = [(prompt, row) for row in self.of_prompt.get(prompt, ())] or self.captions
            text, row = own[int(torch.randint(len(own), (), generator=generator))]
            rows.append(row)
            texts.append(text)
        return torch.tensor(rows), texts


def load_references(
    source: str | Path | Sequence[str | Path], *, height: int, width: int, least: int = 1
) -> References:
    """Read, check and fit reference images.

    Args:
        source: a folder (searched with its subfolders), a text file with a path a line, a JSON-lines file of
            ``{"prompt": ..., "refs": [paths]}``, a CSV file with the columns ``file`` and ``prompt``, a list of
            files, or ``world:STYLE[:COUNT]`` (100 pictures of the embedded world). Paths are relative to the file
            that has them.
        height: of the images to make, pixels.
        width: of the images to make, pixels.
        least: fewer than this many are refused.

    Raises:
        DataError: listing every file that is missing, unreadable, transparent, CMYK, deeper than 8 bits, smaller than
            8 pixels, of a kind that is not read (such as .gif or .heic) or a copy of another; or saying that there are
            too few.
    """
    if isinstance(source, str) and source.startswith("world:"):
        rendered = _rendered(source, height, width)
        _check_count(len(rendered.images), least, source)
        return rendered
    entries = list(_entries(source))
    images, faults = _distinct(dict.fromkeys(file for _, file in entries), height, width)
    if faults:
        rest = f" and {len(faults) - _MOST_TOLD} more" if len(faults) > _MOST_TOLD else ""
        told = "; ".join(f"{file} {fault}" for file, fault in list(faults.items())[:_MOST_TOLD])
        raise DataError(
            f"{len(faults)} of {len(faults) + len(images)} reference images cannot be used; mend or remove them: "
            f"{told}{rest}."
        )
    _check_count(len(images), least, source)
    rows = {file: row for row, file in enumerate(images)}
    of_prompt: dict[str, tuple[int, ...]] = {}
    for prompt, file in entries:
        if prompt is not None:
            of_prompt[prompt] = (*of_prompt.get(prompt, ()), rows[file])
    return References(
        images=torch.stack(list(images.values())),
        files=tuple(map(str, images)),
        of_prompt=of_prompt,
        captions=tuple((prompt, rows[file]) for prompt, file in entries if prompt is not None),
    )


def _check_count(count: int, least: int, source: str | Path | Sequence[str | Path]) -> None:
    if count < max(1, least):
        name = source if isinstance(source, str | Path) else "the list"
        raise DataError(
            f"At least {max(1, least)} reference images are needed, but {name} has {count}; add some."
        )


def _distinct(files: Iterable[Path], height: int, width: int) -> tuple[dict[Path, Tensor], dict[Path, str]]:
    """Each file's picture cut to size, or what is wrong with it."""
    images: dict[Path, Tensor] = {}
    faults: dict[Path, str] = {}
    seen: dict[bytes, Path] = {}
    for file in files:
        loaded = read_picture(file)
        if isinstance(loaded, str):
            faults[file] = loaded
            continue
        digest = hashlib.sha256(loaded.tobytes() + str(loaded.size).encode()).digest()
        if digest in seen:
            faults[file] = f"is the same picture as {seen[digest]}"
            continue
        seen[digest] = file
        images[file] = fit(loaded, height, width)
    return images, faults


def fit(picture: Image.Image, height: int, width: int) -> Tensor:
    """uint8 [3, height, width]: scaled so that it covers the size, the middle cut out; nothing is distorted."""
    scale = max(height / picture.height, width / picture.width)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    cut = picture.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.asarray(cut).copy()).permute(2, 0, 1)


def _entries(source: str | Path | Sequence[str | Path]) -> Iterator[tuple[str | None, Path]]:
    """Prompt, or None, and file of every reference."""
    if not isinstance(source, str | Path):
        yield from ((None, Path(file)) for file in source)
        return
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if is_picture(file))
        if not files:
            raise DataError(f"The folder {path} holds no pictures ({', '.join(ENDINGS)}).")
        yield from ((None, file) for file in files)
    elif path.suffix == ".jsonl" and path.is_file():
        for number, line in _lines(path):
            yield from _row(line, f"{path}:{number}", path.parent)
    elif path.suffix == ".txt" and path.is_file():
        yield from ((None, path.parent / line.strip()) for _, line in _lines(path))
    elif path.suffix == ".csv" and path.is_file():
        yield from _captions(path)
    else:
        raise DataError(
            f"References come from a folder of pictures, a .txt, .jsonl or .csv file, or world:STYLE; {path} is none."
        )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _rendered(source: str, height: int, width: int) -> References:
    """Pictures of the embedded world in one of its styles."""
    from imgrl.world.styles import STYLES, style_set

    _, style, *rest = source.split(":")
    count = int(rest[0]) if rest and rest[0].isdigit() else 100
    if style not in STYLES or len(rest) > 1 or (rest and not rest[0].isdigit()) or not count:
        raise DataError(
            f"Rendered references are world:STYLE or world:STYLE:COUNT with one of {', '.join(STYLES)}, got {source!r}."
        )
    try:
        made = style_set(style, count)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    return References(
        images=torch.stack([fit(Image.fromarray(pixels), height, width) for _, pixels in made]),
        files=tuple(f"{source}/{number}" for number in range(count)),
        of_prompt={},  # any prompt of the world may be drawn, and few of them have a picture here
        captions=tuple((prompt.text, row) for row, (prompt, _) in enumerate(made)),
    )


def _captions(path: Path) -> Iterator[tuple[str, Path]]:
    """Prompt and file of every row of a table with a header."""
    rows = csv.DictReader(line for _, line in _lines(path))
    if not {"file", "prompt"} <= set(rows.fieldnames or ()):
        raise DataError(
            f"{path} must have the columns file and prompt, but its first line names {rows.fieldnames}."
        )
    for number, row in enumerate(rows, 2):
        file, prompt = (row["file"] or "").strip(), (row["prompt"] or "").strip()
        if not file or not prompt:
            raise DataError(
                f"Row {number} of {path} must have a file and a prompt, got {file!r} and {prompt!r}."
            )
        yield prompt, path.parent / file


def _row(line: str, where: str, folder: Path) -> Iterator[tuple[str, Path]]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not valid JSON ({error.msg} at column {error.colno}).") from error
    row = row if isinstance(row, dict) else {}
    files: Any = row.get("refs")
    wrong = not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files)
    if wrong or not isinstance(row.get("prompt"), str):
        raise DataError(f'{where} must look like {{"prompt": "a text", "refs": ["a.png", ...]}}.')
    yield from ((row["prompt"], folder / file) for file in files)
