"""Keeping some reference images back, so that what was learned from the others can be measured on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from imgrl.errors import DataError
from imgrl.rewards.references import References, load_references

__all__ = ["CAPTIONS", "hold_out", "split_references"]

CAPTIONS = "captions-train.jsonl"
"""What training pictures show, beside the lists, where the pictures are drawn for any prompt."""
_LEAST = 10
T = TypeVar("T")


def hold_out(rows: Sequence[T], *, every: int = 5) -> tuple[list[T], list[T]]:
    """Rows for training, and every ``every``-th row, held out."""
    held = list(rows[every - 1 :: every])
    return [row for number, row in enumerate(rows) if number % every != every - 1], held


def split_references(source: str, folder: Path, *, every: int = 5) -> tuple[Path, Path]:
    """Check references and write two lists of them, for training and held out; returns the two files.

    Every ``every``-th picture is held out; of references with prompts, every ``every``-th prompt with its pictures,
    less those that training prompts share. Rendered references become files too.

    Args:
        source: what :func:`imgrl.rewards.references.load_references` takes.
        folder: where the lists go.
        every: one in so many is held out.

    Raises:
        DataError: if a reference cannot be used or there are fewer than ten.
    """
    found = load_references(source, height=64, width=64, least=_LEAST)
    folder.mkdir(parents=True, exist_ok=True)
    if source.startswith("world:"):
        found = _written(found, folder / "pictures")
    files = [str(Path(file).resolve()) for file in found.files]
    if found.of_prompt:
        return _split_prompts(found, files, folder, every)
    lists = folder / "references-train.txt", folder / "references-heldout.txt"
    for file, chosen in zip(lists, hold_out(files, every=every), strict=True):
        file.write_text("".join(f"{picture}\n" for picture in chosen), encoding="utf-8")
    if found.captions:  # those of the world belong to no prompt of a run, but say what is shown
        shown = [{"prompt": prompt, "refs": [files[row]]} for prompt, row in found.captions]
        _write_lines(folder / CAPTIONS, hold_out(shown, every=every)[0])
    return lists


def _written(found: References, folder: Path) -> References:
    """The same references as PNG files."""
    folder.mkdir(exist_ok=True)
    names = tuple(str(folder / f"{row:04d}.png") for row in range(len(found.files)))
    for image, name in zip(found.images, names, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(name)
    return replace(found, files=names)


def _split_prompts(found: References, files: list[str], folder: Path, every: int) -> tuple[Path, Path]:
    """Whole prompts are held out; a picture that a training prompt has too stays with training."""
    entries = list(found.of_prompt.items())
    train, rest = hold_out(entries, every=every)
    used = {row for _, rows in train for row in rows}
    left = [(prompt, [row for row in rows if row not in used]) for prompt, rows in rest]
    held = [(prompt, rows) for prompt, rows in left if rows]
    if sum(len(rows) for _, rows in held) < 2:
        raise DataError(
            f"At least two reference images are held out, every {every}th prompt with its own, but {len(entries)} "
            "prompts leave fewer; add prompts with pictures of their own, or give the pictures without prompts."
        )
    lists = folder / "references-train.jsonl", folder / "references-heldout.jsonl"
    for file, chosen in zip(lists, (train, held), strict=True):
        _write_lines(file, [{"prompt": p, "refs": [files[row] for row in rows]} for p, rows in chosen])
    return lists


def _write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
