"""Renders a prompt's metadata to a picture: flat background, upright shapes that do not touch, or a sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imgrl.world.prompts import held_out_combinations
from imgrl.world.vocabulary import BACKGROUNDS, COLORS, IMAGE_SIZE, RING_HOLE, TEXT_TASK, outline

__all__ = ["Placed", "draw", "render", "render_sign", "scene"]

Places = Sequence[tuple[float, float]]
"""Centres of the objects of a scene, in pixels of a 64 px picture."""

_SUPERSAMPLE = 4
_GAP = 2.5  # pixels between outlines: more than a pixel's diagonal after antialiasing
_RADII = {1: (9.0, 22.0), 2: (8.0, 14.0), 3: (7.5, 11.0), 4: (7.0, 9.5)}
# Tidy scenes, in pixels of a 64 px picture: centres on cells of a factor-8 autoencoder, few places.
_TIDY_RADII = {1: 14.0, 2: 11.0, 3: 10.0, 4: 10.0}
_OFFSETS = (24.0, 32.0, 40.0)
_SIDE_BY_SIDE = tuple(((16.0, y), (48.0, y)) for y in _OFFSETS)
_STACKED = tuple(((x, 16.0), (x, 48.0)) for x in _OFFSETS)
_TIDY_PLACES: dict[int, tuple[Places, ...]] = {
    1: tuple(((x, 32.0),) for x in _OFFSETS),
    2: _SIDE_BY_SIDE,  # in the order in which they are named
    3: (((16.0, 16.0), (48.0, 16.0), (32.0, 48.0)), ((16.0, 48.0), (48.0, 48.0), (32.0, 16.0))),
    4: (((16.0, 16.0), (48.0, 16.0), (16.0, 48.0), (48.0, 48.0)),),
}
_RELATION_MARGIN = 0.1  # GenEval's: offsets shrink by this share of both sizes before the direction is read


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """One object of a scene; centre and radius in pixels."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


def render(
    metadata: Mapping[str, Any], rng: np.random.Generator, *, size: int = IMAGE_SIZE, tidy: bool = False
) -> np.ndarray:
    """A picture [size, size, 3] uint8 for which the prompt behind ``metadata`` is true; see :func:`scene`."""
    if metadata["tag"] == TEXT_TASK:
        return render_sign(metadata["text"], rng, size=size, tidy=tidy)
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    return draw(scene(metadata, rng, size=size, tidy=tidy), background=background, size=size)


def scene(
    metadata: Mapping[str, Any], rng: np.random.Generator, *, size: int = IMAGE_SIZE, tidy: bool = False
) -> list[Placed]:
    """Objects of a scene in which every clause of ``metadata`` holds, with free attributes drawn at random.

    Free colours never make a held-out (colour, shape) pair, so that such pairs stay unseen in pretraining. ``tidy``
    takes places from short lists, a radius for each number of objects, and sets two objects side by side in the
    order in which they are named unless a relation says otherwise: far fewer pictures to learn to draw.
    """
    wanted: list[tuple[str, str]] = []
    for clause in metadata["include"]:
        color = clause.get("color") or _free_color(clause["class"], rng)
        wanted += [(clause["class"], color)] * clause["count"]
    relation = next((clause["position"][0] for clause in metadata["include"] if "position" in clause), None)
    places, radii = (_tidy_places if tidy else _free_places)([shape for shape, _ in wanted], relation, rng)
    scale = size / IMAGE_SIZE
    return [
        Placed(shape=s, color=c, x=x * scale, y=y * scale, radius=r * scale)
        for (s, c), (x, y), r in zip(wanted, places, radii, strict=True)
    ]


def _tidy_places(
    shapes: Sequence[str], relation: str | None, rng: np.random.Generator
) -> tuple[Places, np.ndarray]:
    """Centres out of the short lists, and the radii, in pixels of a 64 px picture."""
    radii = np.full(len(shapes), _TIDY_RADII[len(shapes)])
    options: Sequence[Places] = _TIDY_PLACES[len(shapes)]
    if relation is not None:
        pairs = (*_SIDE_BY_SIDE, *_STACKED)
        options = [p for pair in pairs for p in (pair, pair[::-1]) if _holds(relation, p, radii)]
    return options[rng.integers(len(options))], radii


def _free_places(
    shapes: Sequence[str], relation: str | None, rng: np.random.Generator
) -> tuple[Places, np.ndarray]:
    """Centres and radii, in pixels of a 64 px picture, anywhere that leaves a gap between objects."""
    while True:
        radii = rng.uniform(*_RADII[len(shapes)], len(shapes))
        reach = radii * [_reach(shape) for shape in shapes]
        places = _place(radii, reach, relation, rng)
        if places is not None:
            return places, radii


def _free_color(shape: str, rng: np.random.Generator) -> str:
    unseen = held_out_combinations()["color_shape"]
    allowed = [color for color in COLORS if (color, shape) not in unseen]
    return allowed[rng.integers(len(allowed))]


def _place(
    radii: np.ndarray,
    reach: np.ndarray,
    relation: str | None,
    rng: np.random.Generator,
    *,
    tries: int = 60,
) -> Places | None:
    for _ in range(tries):
        spans = [(r + 2, IMAGE_SIZE - r - 2) for r in radii]
        centers = [(float(rng.uniform(*span)), float(rng.uniform(*span))) for span in spans]
        pairs = [(i, j) for i in range(len(radii)) for j in range(i)]
        apart = all(
            # Corners reach beyond the radius: the boxes or the circles around the corners keep the gap.
            max(np.abs(np.subtract(centers[i], centers[j]))) >= radii[i] + radii[j] + _GAP
            or np.hypot(*np.subtract(centers[i], centers[j])) >= reach[i] + reach[j] + _GAP
            for i, j in pairs
        )
        if apart and (relation is None or _holds(relation, centers, radii)):
            return centers
    return None


def _reach(shape: str) -> float:
    """Distance of the farthest corner from the centre, in radii."""
    return max((float(np.hypot(x, y)) for x, y in outline(shape) or ()), default=1.0)


def _holds(relation: str, centers: Places, radii: np.ndarray) -> bool:
    """Whether object 1 stands in ``relation`` to object 0, and in no second one, with GenEval's margin."""
    offset = np.subtract(centers[1], centers[0])
    shrunk = np.sign(offset) * np.maximum(np.abs(offset) - _RELATION_MARGIN * 2 * radii.sum(), 0)
    dx, dy = shrunk / max(float(np.hypot(*offset)), 1e-9)
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    across = dy if relation in ("left of", "right of") else dx
    return bool(along > 0.6 and abs(across) < 0.45)  # the benchmark's threshold is 0.5 on either axis


def draw(objects: Sequence[Placed], *, background: str, size: int = IMAGE_SIZE) -> np.ndarray:
    """Paint ``objects`` on a flat background, [size, size, 3] uint8, antialiased by supersampling."""
    k = _SUPERSAMPLE
    image = Image.new("RGB", (size * k, size * k), BACKGROUNDS[background])
    canvas = ImageDraw.Draw(image)
    for item in objects:
        x, y, r = item.x * k, item.y * k, item.radius * k
        fill = COLORS[item.color]
        polygon = outline(item.shape)
        if polygon is not None:
            canvas.polygon([(x + px * r, y + py * r) for px, py in polygon], fill=fill)
            continue
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        if item.shape == "ring":
            h = r * RING_HOLE
            canvas.ellipse((x - h, y - h, x + h, y + h), fill=BACKGROUNDS[background])
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


_CELL, _CAP = 11.5, 12.0  # pixels of a 64 px sign: letter pitch and capital height


def render_sign(
    text: str, rng: np.random.Generator, *, size: int = IMAGE_SIZE, tidy: bool = False
) -> np.ndarray:
    """A sign that says ``text``: dark letters on light or light on dark, monospaced, centred, jittered unless tidy."""
    dark, light = (0, 0, 0), (255, 255, 255)
    ink, ground = (dark, light) if rng.random() < 0.5 else (light, dark)
    k = _SUPERSAMPLE * size / IMAGE_SIZE
    side = _SUPERSAMPLE * size
    image = Image.new("RGB", (side, side), ground)
    canvas = ImageDraw.Draw(image)
    dx, dy = (0.0, 0.0) if tidy else rng.uniform(-1.5, 1.5, 2)
    left = IMAGE_SIZE / 2 - _CELL * (len(text) - 1) / 2 + dx
    for i, letter in enumerate(text):
        center = ((left + i * _CELL) * k, (IMAGE_SIZE / 2 + _CAP / 2 + dy) * k)
        canvas.text(center, letter, fill=ink, font=_font(round(_CAP * k)), anchor="ms")
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


@cache
def _font(cap_pixels: int) -> Any:
    """Pillow's own font at the size whose capitals are ``cap_pixels`` high."""
    probe = ImageFont.load_default(100)
    left, top, right, bottom = probe.getbbox("H", anchor="ls")
    del left, right
    return ImageFont.load_default(cap_pixels * 100 / (bottom - top))
