"""Finds the shapes in a picture of the embedded world by rules alone: no weights, no randomness.

The steps: read the flat background off the border; take connected regions that differ from it; cut each at
half of its own contrast, which blur does not move; stretch the region's soft mask to a fixed grid and compare
it with the six outlines, which went the same way at several degrees of blur; name the colour of the core.
Whatever is smeared, merged or of a wrong outline is not an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from imgrl.evaluation.geneval.judge import Box
from imgrl.world.vocabulary import COLORS, RING_HOLE, SHAPES, outline

__all__ = ["Detection", "Rules", "detect"]

Bounds = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels

_GRID, _MARGIN = 32, 4  # cells of the comparison's side; of them left free around the region's box
_BLURS = (0.0, 0.05, 0.10, 0.17)  # standard deviations of the templates' blur, in radii
_NOISY = 10.0  # median deviation of the border (8-bit units) from which the picture is smoothed first
_NAMES = tuple(COLORS)
_PALETTE = np.array([COLORS[name] for name in _NAMES], np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Thresholds, in 8-bit colour units unless said otherwise."""

    color_distance: float = 45.0
    """A pixel is foreground when its colour is farther than this from the background."""
    border_uniform: float = 0.75
    """Share of border pixels that must look like background, else nothing is detected."""
    min_area: int = 20
    """Smaller regions (pixels) are dust."""
    shape_iou: float = 0.72
    """Least overlap of the soft mask with the best outline."""
    aspect: float = 1.35
    """Largest factor by which width / height may differ from the outline's."""
    palette_distance: float = 90.0
    """The core's colour must be this close to a named one."""
    spread: float = 60.0
    """Largest deviation of colours inside the core."""
    sharp: float = 0.45
    """Least share of the region's pixels above 80 % of its contrast: refuses smears."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """One object; ``box.score`` is the overlap with the outline."""

    shape: str
    color: str
    box: Box


def detect(image: np.ndarray, *, rules: Rules = Rules()) -> list[Detection]:
    """Objects of ``image`` (uint8 [H, W, 3]), best outline first.

    Raises:
        ValueError: if the array is not an 8-bit RGB picture.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"Expected a uint8 picture [H, W, 3], got {image.dtype} {list(image.shape)}.")
    pixels = image.astype(np.float32)
    border = _border(pixels)
    background = np.median(border, axis=0)
    smooth = _smooth(pixels)
    if np.mean(_distance(_border(smooth), background) < rules.color_distance) < rules.border_uniform:
        return []
    noisy = np.median(np.abs(border - background)) > _NOISY
    pixels = smooth if noisy else pixels
    contrast = _distance(pixels, background)
    labels = _separate(contrast, rules)
    found = []
    for label, region in enumerate(ndimage.find_objects(labels), start=1):
        item = _examine(pixels, contrast, labels, label, region, rules)
        found += [item] if item else []
    return sorted(found, key=lambda item: -item.box.score)


def _border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def _smooth(pixels: np.ndarray) -> np.ndarray:
    """Binomial 3 x 3 filter, against pixel noise."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16


def _distance(pixels: np.ndarray, color: np.ndarray) -> np.ndarray:
    offset = pixels - color
    return np.sqrt(np.einsum("...c,...c->...", offset, offset))


def _quantile(values: np.ndarray, share: float) -> float:
    """The value below which ``share`` of ``values`` lies; for few values much faster than numpy's own."""
    return float(np.sort(values)[int(share * (len(values) - 1))])


def _grow(mask: np.ndarray) -> np.ndarray:
    """Add the four neighbours of every pixel of a boolean mask."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _label(mask: np.ndarray) -> np.ndarray:
    """Number the connected regions of a mask from 1."""
    labels: Any = ndimage.label(mask)
    return labels[0]


def _separate(contrast: np.ndarray, rules: Rules) -> np.ndarray:
    """Label the candidates: connected regions, each cut at half of its own contrast.

    The cut parts what blur joins. A paler neighbour that falls below the cut is picked up from the rest.
    """
    labels = _label(contrast > rules.color_distance)
    result, total = np.zeros_like(labels), 0
    for label, region in enumerate(ndimage.find_objects(labels), start=1):
        rest, depth, target = labels[region] == label, contrast[region], result[region]
        while np.count_nonzero(rest) >= rules.min_area:
            peak = _quantile(depth[rest], 0.9)
            pieces = _label(rest & (depth > 0.5 * peak))
            for piece, size in enumerate(np.bincount(pieces.ravel())[1:], start=1):
                if size >= rules.min_area:
                    total += 1
                    target[pieces == piece] = total
            rest &= ~_grow(_grow(pieces > 0))
    return result


def _examine(
    pixels: np.ndarray,
    contrast: np.ndarray,
    labels: np.ndarray,
    label: int,
    region: tuple[slice, slice],
    rules: Rules,
) -> Detection | None:
    """The object in one candidate region, or None if it is no clean shape."""
    rows, columns = (slice(max(s.start - 2, 0), s.stop + 2) for s in region)
    crop, own, contrast = pixels[rows, columns], labels[rows, columns], contrast[rows, columns]
    inside = own == label
    others = ~inside & (own != 0)
    near = inside | (_grow(_grow(inside)) & ~_grow(others))
    peak = max(_quantile(contrast[inside], 0.85), 1e-6)
    if np.mean(contrast[inside] > 0.8 * peak) < rules.sharp:
        return None
    soft = np.minimum(contrast / peak, 1) * near
    box = _half_contrast_box(soft)
    if box is None:
        return None
    overlaps = _overlaps(soft, box)
    shape = (box[2] - box[0]) / (box[3] - box[1]) / _aspects()
    overlaps[(shape <= 1 / rules.aspect) | (shape >= rules.aspect)] = 0
    best = int(overlaps.argmax())
    if overlaps[best] < rules.shape_iou:
        return None
    color = _core_color(crop, soft, rules)
    if color is None:
        return None
    x, y = columns.start, rows.start
    placed = Box(x + box[0], y + box[1], x + box[2], y + box[3], float(overlaps[best]))
    return Detection(shape=SHAPES[best], color=color, box=placed)


def _half_contrast_box(soft: np.ndarray) -> Bounds | None:
    """Sub-pixel bounds where the mask crosses one half; pixel i covers [i, i + 1]."""
    x = _crossings(np.partition(soft, -2, axis=0)[-2:].mean(0))
    y = _crossings(np.partition(soft, -2, axis=1)[:, -2:].mean(1))
    if x is None or y is None or x[1] - x[0] < 3 or y[1] - y[0] < 3:
        return None
    return x[0], y[0], x[1], y[1]


def _crossings(profile: np.ndarray) -> tuple[float, float] | None:
    above = np.flatnonzero(profile >= 0.5)
    if len(above) == 0:
        return None
    first, last = above[0], above[-1]
    low = profile[first - 1] if first > 0 else 0.0
    high = profile[last + 1] if last + 1 < len(profile) else 0.0
    # Between the centres of the pixels left and right of the crossing, linearly.
    start = first + 0.5 - (profile[first] - 0.5) / max(profile[first] - low, 1e-6)
    stop = last + 0.5 + (profile[last] - 0.5) / max(profile[last] - high, 1e-6)
    return float(start), float(stop)


def _overlaps(soft: np.ndarray, box: Bounds) -> np.ndarray:
    """Soft intersection over union with each outline, at the blur that suits it best: [6]."""
    mask, templates = _stretch(soft, box).ravel(), _templates()
    shared = np.minimum(templates, mask).sum(1)
    union = templates.sum(1) + mask.sum() - shared
    return (shared / union).reshape(len(SHAPES), -1).max(1)


def _stretch(soft: np.ndarray, box: Bounds) -> np.ndarray:
    """The mask resampled so that ``box`` fills the grid but for its margin: float32 [grid, grid]."""
    rows = _resampling(soft.shape[0], box[1], box[3])
    columns = _resampling(soft.shape[1], box[0], box[2])
    return rows @ soft.astype(np.float32) @ columns.T


def _resampling(count: int, low: float, high: float) -> np.ndarray:
    """Weights [grid, count] of pixels in each cell: linear between pixels, or means of larger cells."""
    cell = (high - low) / (_GRID - 2 * _MARGIN)
    centers = low + (np.arange(_GRID, dtype=np.float32)[:, None] + 0.5 - _MARGIN) * cell
    distance = np.abs(centers - np.arange(count, dtype=np.float32) - 0.5)
    if cell <= 1:
        return np.maximum(1 - distance, 0)
    return np.clip((cell + 1) / 2 - distance, 0, 1) / cell  # overlap of the pixel with the cell


@cache
def _templates() -> np.ndarray:
    """Each outline as the detector would see it, at each blur: float32 [6 * blurs, grid * grid]."""
    masks = []
    for shape in SHAPES:
        for blur in _BLURS:
            drawn, radius = _drawn(shape)
            soft = ndimage.gaussian_filter(drawn, blur * radius) if blur else drawn
            soft = np.minimum(soft / _quantile(soft[soft > 0.5 * soft.max()], 0.85), 1)
            box = _half_contrast_box(soft)
            assert box is not None
            masks.append(_stretch(soft, box).ravel())
    return np.stack(masks)


def _drawn(shape: str, *, side: int = 48, factor: int = 8) -> tuple[np.ndarray, float]:
    """An outline's antialiased mask float32 [side, side], and its radius in pixels."""
    center, radius = side * factor / 2, side * factor / 3
    image = Image.new("F", (side * factor, side * factor), 0)
    canvas = ImageDraw.Draw(image)
    polygon = outline(shape)
    if polygon is not None:
        canvas.polygon([(center + x * radius, center + y * radius) for x, y in polygon], fill=1)
    else:
        for share, value in ((1.0, 1), (RING_HOLE if shape == "ring" else 0, 0)):
            ends = (center - share * radius, center + share * radius)
            if share:
                canvas.ellipse((ends[0], ends[0], ends[1], ends[1]), fill=value)
    return np.asarray(image).reshape(side, factor, side, factor).mean((1, 3)), radius / factor


@cache
def _aspects() -> np.ndarray:
    """Width over height of each outline: [6]."""
    sizes = [np.ptp(np.array(outline(shape) or [(-1, -1), (1, 1)]), axis=0) for shape in SHAPES]
    return np.array([width / height for width, height in sizes])


def _core_color(crop: np.ndarray, soft: np.ndarray, rules: Rules) -> str | None:
    """Name of the colour of the region without its rim, or None if it is mixed or unnamed."""
    solid = soft > 0.5
    core = ~_grow(~np.pad(solid, 1))[1:-1, 1:-1]
    pixels = crop[core if np.count_nonzero(core) >= 6 else solid]
    center = np.median(pixels, axis=0)
    if np.median(_distance(pixels, center)) > rules.spread:
        return None
    distances = _distance(_PALETTE, center)
    nearest = int(distances.argmin())
    return _NAMES[nearest] if distances[nearest] <= rules.palette_distance else None
