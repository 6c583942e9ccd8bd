"""EasyOCR's recogniser on lines of text cut out of many images, those padded to one width together.

EasyOCR would read them one at a time on a CPU; a crop is read the same in any company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["LINE_HEIGHT", "Crop", "Line", "read_lines", "symbol_log_probabilities"]

Line = tuple[str, float]
"""A recognised text and its confidence."""
Crop = tuple[np.ndarray, int]
"""A line of text at the recogniser's height, and the width to pad it to."""
LINE_HEIGHT = 64  # EasyOCR's


def read_lines(reader: Any, crops: Sequence[Crop], *, batch: int) -> list[Line]:
    """Read each crop with an ``easyocr.Reader``, ``batch`` of them at once."""
    from easyocr.recognition import get_text

    lines: list[Line] = [("", 0.0)] * len(crops)
    for width, rows in _by_width(crops):
        read = get_text(
            reader.character,
            LINE_HEIGHT,
            width,
            reader.recognizer,
            reader.converter,
            [((), crops[row][0]) for row in rows],
            ignore_char="".join(_unwanted(reader)),
            batch_size=batch,
            workers=0,
            device=reader.device,
        )
        for row, (_, text, confidence) in zip(rows, read, strict=True):
            lines[row] = (text, float(confidence))
    return lines


@torch.no_grad()
def symbol_log_probabilities(reader: Any, crops: Sequence[Crop], *, batch: int) -> list[Tensor]:
    """Return an ``easyocr.Reader``'s log-probabilities [steps, 1 + symbols] of each crop, blank first."""
    from easyocr.recognition import AlignCollate
    from PIL import Image

    unwanted = [reader.character.index(symbol) + 1 for symbol in _unwanted(reader)]
    found: dict[int, Tensor] = {}
    for width, rows in _by_width(crops):
        collate = AlignCollate(imgH=LINE_HEIGHT, imgW=width, keep_ratio_with_pad=True)
        for chosen in (rows[start : start + batch] for start in range(0, len(rows), batch)):
            pictures = collate([Image.fromarray(crops[row][0]) for row in chosen]).to(reader.device)
            logits = reader.recognizer(pictures, None).float().cpu()
            logits[..., unwanted] = -torch.inf
            found.update(zip(chosen, logits.log_softmax(-1), strict=True))
    return [found[row] for row in range(len(crops))]


def _by_width(crops: Sequence[Crop]) -> Iterator[tuple[int, list[int]]]:
    """Each width, and the rows of the crops that are padded to it."""
    for width in sorted({width for _, width in crops}):
        yield width, [row for row, crop in enumerate(crops) if crop[1] == width]


def _unwanted(reader: Any) -> set[str]:
    """Symbols of the network that the reader's language lacks."""
    return set(reader.character) - set(reader.lang_char)
