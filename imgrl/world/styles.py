"""Styles to customise a model to, rendered: the same scenes as the plain world, drawn in another manner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from imgrl.types import Prompt
from imgrl.world.prompts import prompts
from imgrl.world.render import Placed, draw, scene
from imgrl.world.vocabulary import BACKGROUNDS, COLORS, IMAGE_SIZE, RING_HOLE, TASKS, outline

__all__ = ["STYLES", "style_picture", "style_set"]

STYLES = ("plain", "outlined", "pastel", "hatched", "noise")
"""``plain`` is the world itself and ``noise`` no picture at all, as a control."""

_K = 4  # supersampling
_TRIES = 1000  # for a picture that is not there yet
_DARK, _CREAM, _PAPER = (24, 26, 40), (250, 244, 228), (252, 252, 250)
_STROKE, _PITCH = 2.6, 4.6  # pixels of a 64 px picture: width of an outline, distance of hatching lines


def style_set(style: str, count: int, *, seed: int = 0) -> list[tuple[Prompt, np.ndarray]]:
    """``count`` pictures [64, 64, 3] uint8 of training prompts, no two alike, all tasks alike, in a style.

    Raises:
        ValueError: for an unknown style, or if there are not so many pictures.
    """
    if style not in STYLES:
        raise ValueError(f"Unknown style {style!r} of the embedded world; there are: {', '.join(STYLES)}.")
    rng = np.random.default_rng([seed, STYLES.index(style)])
    by_task = [[p for p in prompts("train") if p.columns["tag"] == task] for task in TASKS]
    found: dict[bytes, tuple[Prompt, np.ndarray]] = {}
    for i in range(count):
        own = by_task[i % len(TASKS)]
        for _ in range(_TRIES):
            prompt = own[rng.integers(len(own))]
            picture = style_picture(style, prompt.columns, rng)
            if picture.tobytes() not in found:
                break
        else:
            raise ValueError(
                f"The embedded world runs out of different pictures of the style {style!r} after {len(found)}, but "
                f"{count} are wanted; ask for fewer."
            )
        found[picture.tobytes()] = (prompt, picture)
    return list(found.values())


def style_picture(style: str, metadata: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
    """A picture [64, 64, 3] uint8 for which the prompt behind ``metadata`` is true, in a style."""
    if style == "noise":
        return rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    objects = scene(metadata, rng, tidy=True)  # as the bundled model draws: a style is not a matter of place
    if style == "plain":
        return draw(objects, background=list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))])
    side = IMAGE_SIZE * _K
    ground = {"outlined": _DARK, "pastel": _CREAM, "hatched": _PAPER}[style]
    sheet = Image.new("RGB", (side, side), ground)
    for item in objects:
        mask, color = _mask(item, side), COLORS[item.color]
        if style == "outlined":
            mask = ImageChops.subtract(mask, _mask(item, side, shrink=_STROKE))
        elif style == "pastel":
            color = tuple(round(0.45 * part + 0.55 * 255) for part in color)
        else:
            mask = ImageChops.multiply(mask, _lines(side))
        sheet.paste(color, mask=mask)
    return np.asarray(sheet.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))


def _mask(item: Placed, side: int, *, shrink: float = 0.0) -> Image.Image:
    """White where the object is; ``shrink`` pixels are taken off all around, its hole's edge included."""
    mask = Image.new("L", (side, side), 0)
    canvas = ImageDraw.Draw(mask)
    x, y, r = item.x * _K, item.y * _K, item.radius * _K
    polygon = outline(item.shape)
    if polygon is None:
        inner = r - shrink * _K
        canvas.ellipse((x - inner, y - inner, x + inner, y + inner), fill=255)
    else:
        points = [(x + px * r, y + py * r) for px, py in polygon]
        canvas.polygon(points, fill=255)
        if shrink:  # a black line around the edge eats half its width from inside
            canvas.line([*points, points[0], points[1]], fill=0, width=round(2 * shrink * _K), joint="curve")
    if item.shape == "ring":
        hole = r * RING_HOLE + shrink * _K
        canvas.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    return mask


def _lines(side: int) -> Image.Image:
    """Diagonal lines, half ink and half paper."""
    rows, columns = np.mgrid[:side, :side]
    return Image.fromarray((((rows + columns) // (_PITCH * _K / 2) % 2) * 255).astype(np.uint8))
