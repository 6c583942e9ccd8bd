"""Reference images: what a learning reward takes for good, and what a style is learned from.

They come as a folder of pictures, as a file that lists them, as a JSON-lines file that gives prompts theirs, as a list,
or rendered by the embedded world. Whatever is wrong with
them is said at once, before anything expensive starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from imgrl.errors import DataError

__all__ = ["References", "fit", "load_references"]

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
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


def load_references(
    source: str | Path | Sequence[str | Path], *, height: int, width: int, least: int = 1
) -> References:
    """Read, check and fit reference images.

    Args:
        source: a folder (searched with its subfolders), a text file with a path a line, a JSON-lines file of
            ``{"prompt": ..., "refs": [paths]}``, a list of files, or ``world:STYLE[:COUNT]`` (100 pictures of the
            embedded world). Paths are relative to the file that has them.
        height: of the images to make, pixels.
        width: of the images to make, pixels.
        least: fewer than this many are refused.

    Raises:
        DataError: listing every file that is missing, unreadable, transparent, CMYK, deeper than 8 bits, smaller than
            8 pixels or a copy of another; or saying that there are too few.
    """
    if isinstance(source, str) and source.startswith("world:"):
        return _rendered(source, height, width)
    entries = list(_entries(source))
    images, files, of_prompt = [], [], {}
    rows: dict[Path, int] = {}
    seen: dict[str, str] = {}
    faults: list[str] = []
    for prompt, file in entries:
        if file not in rows:
            loaded = _read(file)
            if isinstance(loaded, str):
                faults.append(f"{file}: {loaded}")
                continue
            digest = hashlib.sha256(loaded.tobytes() + str(loaded.size).encode()).hexdigest()
            if digest in seen:
                faults.append(f"{file}: the same picture as {seen[digest]}")
                continue
            seen[digest] = str(file)
            rows[file] = len(images)
            images.append(fit(loaded, height, width))
            files.append(str(file))
        if prompt is not None:
            of_prompt.setdefault(prompt, []).append(rows[file])
    if faults:
        rest = f" and {len(faults) - _MOST_TOLD} more" if len(faults) > _MOST_TOLD else ""
        raise DataError(
            f"{len(faults)} of {len(entries)} reference images cannot be used, mend or remove them: "
            f"{'; '.join(faults[:_MOST_TOLD])}{rest}."
        )
    if len(images) < least:
        raise DataError(f"At least {least} reference images are needed, but {source} has {len(images)}.")
    return References(
        images=torch.stack(images),
        files=tuple(files),
        of_prompt={prompt: tuple(own) for prompt, own in of_prompt.items()},
    )


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
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _ENDINGS)
        if not files:
            raise DataError(f"The folder {path} holds no pictures ({', '.join(_ENDINGS)}).")
        yield from ((None, file) for file in files)
    elif path.suffix == ".jsonl" and path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
            if line.strip():
                yield from _row(line, f"{path}:{number}", path.parent)
    elif path.suffix == ".txt" and path.is_file():
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        yield from ((None, path.parent / line.strip()) for line in lines if line.strip())
    else:
        raise DataError(
            f"References come from a folder of pictures, a .txt or .jsonl file, or world:STYLE; {path} is none."
        )


def _rendered(source: str, height: int, width: int) -> References:
    """Pictures of the embedded world in one of its styles."""
    from imgrl.world.styles import STYLES, style_set

    _, style, *rest = source.split(":")
    count = int(rest[0]) if rest and rest[0].isdigit() else 100
    if style not in STYLES or len(rest) > 1 or (rest and not rest[0].isdigit()) or not count:
        raise DataError(
            f"Rendered references are world:STYLE or world:STYLE:COUNT with one of {', '.join(STYLES)}, got {source!r}."
        )
    made = style_set(style, count)
    return References(
        images=torch.stack([fit(Image.fromarray(pixels), height, width) for _, pixels in made]),
        files=tuple(f"{source}/{number}" for number in range(count)),
        of_prompt={},
    )


def _row(line: str, where: str, folder: Path) -> Iterator[tuple[str, Path]]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not valid JSON ({error.msg} at column {error.colno}).") from error
    files = row.get("refs") if isinstance(row, dict) else None
    if not isinstance(files, list) or not files or not isinstance(row.get("prompt"), str):
        raise DataError(f'{where} must look like {{"prompt": "a text", "refs": ["a.png", ...]}}.')
    for file in files:
        yield row["prompt"], folder / str(file)


def _read(file: Path) -> Image.Image | str:
    """The picture as 8-bit RGB, or what is wrong with it."""
    if not file.is_file():
        return "is missing"
    try:
        with Image.open(file) as opened:
            opened.load()
            picture: Image.Image = opened.copy()
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        return f"cannot be read ({type(error).__name__})"
    if picture.mode.startswith(("I", "F")):
        return f"has more than 8 bits a channel (mode {picture.mode}); save it as 8-bit RGB"
    if picture.mode == "CMYK":
        return "is CMYK; convert it to RGB with its colour profile"
    if min(picture.size) < 8:
        return f"is only {picture.width} x {picture.height} pixels"
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A").getextrema()[0]
        if alpha < 255:  # an opaque alpha channel says nothing
            return "is transparent in places; put it on a ground of your choice"
    return picture.convert("RGB")
