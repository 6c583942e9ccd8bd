"""Pictures that lie in a folder, each with its prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imgrl.data import prompts as prompt_files
from imgrl.data.pictures import ENDINGS, is_picture, read_picture
from imgrl.errors import DataError
from imgrl.types import Prompt

__all__ = ["Pair", "load_images", "load_pairs"]

_MOST_TOLD = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One picture."""

    file: Path
    prompt: Prompt
    size: tuple[int, int]
    """Height and width in pixels."""


def load_pairs(folder: Path, prompts: Path) -> list[Pair]:
    """Pair the pictures of a folder with prompts and check that every one can be read.

    Args:
        folder: its pictures are taken in the order of their names.
        prompts: a ``.txt`` file with one prompt a line, or a ``.jsonl`` file of objects with ``prompt`` and further
            columns, in the same order; objects that also have ``file``, a path in the folder, may come in any order.

    Raises:
        DataError: if there are no pictures, counts differ, a file is named that is not there, or some are unreadable.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder.resolve()}.")
    files = sorted(file for file in folder.iterdir() if is_picture(file))
    if not files:
        raise DataError(f"The folder {folder} holds no pictures ({', '.join(ENDINGS)}).")
    rows = [(where, *_row(row, where)) for where, row in prompt_files._read(prompts)]
    if any(file for _, file, _ in rows):
        files = _named(rows, folder)
    elif len(rows) != len(files):
        raise DataError(
            f"Each picture needs its prompt, but {folder} has {len(files)} pictures and {prompts} has {len(rows)} "
            "prompts; give as many, or a .jsonl file whose rows name their `file`."
        )
    texts = [prompt for *_, prompt in rows]
    return [
        Pair(file=file, prompt=Prompt(id=i, text=text, columns=columns), size=size)
        for i, (file, (text, columns), size) in enumerate(zip(files, texts, _sizes(files), strict=True))
    ]


def load_images(pairs: Iterable[Pair]) -> Tensor:
    """Float images [n, 3, H, W] in [0, 1] of pictures of one size.

    Raises:
        DataError: if one has changed since it was checked.
    """
    images = []
    for pair in pairs:
        picture = read_picture(pair.file)
        if isinstance(picture, str) or picture.size[::-1] != pair.size:
            raise DataError(f"{pair.file} changed while it was being read; run the command again.")
        images.append(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))
    return torch.stack(images).float() / 255


def _row(row: Any, where: str) -> tuple[str | None, tuple[str, dict[str, Any]]]:
    """File, if it names one, and prompt with columns of a row."""
    file = row.pop("file", None) if isinstance(row, dict) else None
    if file is not None and not isinstance(file, str):
        raise DataError(f"{where}: `file` must be the path of a picture in the folder, got {file!r}.")
    return file, prompt_files._row(row, where)


def _named(rows: Iterable[tuple[str, str | None, Any]], folder: Path) -> list[Path]:
    """The files that rows name, each once."""
    files: dict[Path, str] = {}
    for where, file, _ in rows:
        if file is None:
            raise DataError(f"{where} names no `file`, but other rows do; name it in every row or in none.")
        path = folder / file
        if not path.is_file():
            raise DataError(f"{where}: there is no file {path}.")
        if path in files:
            raise DataError(f"{where} names {path} again, after {files[path]}; remove one of them.")
        files[path] = where
    return list(files)


def _sizes(files: Iterable[Path]) -> list[tuple[int, int]]:
    """Height and width of each; reads them whole, so that a damaged file is found before anything expensive."""
    faults, sizes = [], []
    for file in files:
        picture = read_picture(file)
        if isinstance(picture, str):
            faults.append(f"{file} {picture}")
        else:
            sizes.append((picture.height, picture.width))
    if faults:
        rest = f" and {len(faults) - _MOST_TOLD} more" if len(faults) > _MOST_TOLD else ""
        raise DataError(
            f"{len(faults)} pictures cannot be scored; mend or remove them: {'; '.join(faults[:_MOST_TOLD])}{rest}."
        )
    return sizes
