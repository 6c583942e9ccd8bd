"""Finds the shapes in a picture of the embedded world by rules alone: no weights, no randomness.

The steps: read the flat background off the border; take connected regions that differ from it; cut each at half of
its own contrast, which blur does not move; compare the soft mask with the six outlines fitted to the region's box;
name the colour of the core. Whatever is smeared, merged or of a wrong outline is not an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from imgrl.evaluation.geneval.judge import Box
from imgrl.world.vocabulary import COLORS, RING_HOLE, SHAPES, outline

__all__ = ["Detection", "Rules", "detect"]

_GRID = 96  # pixels of a template's side
_NOISY = 10.0  # median deviation of the border (8-bit units) from which the picture is smoothed first
_SUB = 3  # template samples per pixel and axis
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
    shape_iou: float = 0.62
    """Least overlap of the soft mask with the best outline."""
    aspect: float = 1.35
    """Largest factor by which width / height may differ from the outline's."""
    palette_distance: float = 90.0
    """The core's colour must be this close to a named one."""
    spread: float = 60.0
    """Largest deviation of colours inside the core."""
    sharp: float = 0.35
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
    background = np.median(_border(pixels), axis=0)
    smooth = _smooth(pixels)
    if np.mean(_distance(_border(smooth), background) < rules.color_distance) < rules.border_uniform:
        return []
    noisy = np.median(np.abs(_border(pixels) - background)) > _NOISY
    pixels = smooth if noisy else pixels
    contrast = _distance(pixels, background)
    labels = _separate(contrast, rules)
    found = []
    for label, region in enumerate(ndimage.find_objects(labels), start=1):
        if region is not None:
            item = _examine(pixels, contrast, labels, label, region, rules)
            found += [item] if item else []
    return sorted(found, key=lambda item: -item.box.score)


def _border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def _separate(contrast: np.ndarray, rules: Rules) -> np.ndarray:
    """Label the candidates: connected regions, each cut at half of its own contrast.

    The cut parts what blur joins. A paler neighbour that falls below the cut is picked up from the rest.
    """
    labels, count = ndimage.label(contrast > rules.color_distance)
    result, total = np.zeros_like(labels), 0
    for label in range(1, count + 1):
        rest = labels == label
        while rest.sum() >= rules.min_area:
            peak = np.percentile(contrast[rest], 90)
            pieces, number = ndimage.label(rest & (contrast > 0.5 * peak))
            for piece in range(1, number + 1):
                mask = pieces == piece
                if mask.sum() >= rules.min_area:
                    total += 1
                    result[mask] = total
            rest &= ~ndimage.binary_dilation(pieces > 0, iterations=2)
    return result


def _smooth(pixels: np.ndarray) -> np.ndarray:
    """Binomial 3 x 3 filter, against pixel noise."""
    kernel = np.array([0.25, 0.5, 0.25], np.float32)
    rows = ndimage.correlate1d(pixels, kernel, axis=0, mode="nearest")
    return ndimage.correlate1d(rows, kernel, axis=1, mode="nearest")


def _distance(pixels: np.ndarray, color: np.ndarray) -> np.ndarray:
    return np.sqrt(((pixels - color) ** 2).sum(-1))


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
    neighbours = ndimage.binary_dilation((own != label) & (own != 0))
    near = inside | (ndimage.binary_dilation(inside, iterations=2) & ~neighbours)
    peak = float(np.percentile(contrast[inside], 85))
    soft = np.clip(contrast / max(peak, 1e-6), 0, 1) * near
    if np.mean(contrast[inside] > 0.8 * peak) < rules.sharp:
        return None
    box = _half_contrast_box(soft)
    if box is None:
        return None
    overlaps = _overlaps(soft, box)
    width, height = box[2] - box[0], box[3] - box[1]
    for i, ratio in enumerate(_aspects()):
        if not 1 / rules.aspect < (width / height) / ratio < rules.aspect:
            overlaps[i] = 0
    best = int(overlaps.argmax())
    if overlaps[best] < rules.shape_iou:
        return None
    color = _core_color(crop, soft, rules)
    if color is None:
        return None
    x, y = columns.start, rows.start
    placed = Box(x + box[0], y + box[1], x + box[2], y + box[3], float(overlaps[best]))
    return Detection(shape=SHAPES[best], color=color, box=placed)


def _half_contrast_box(soft: np.ndarray) -> tuple[float, float, float, float] | None:
    """Sub-pixel bounds (x1, y1, x2, y2) where the mask crosses one half; pixel i covers [i, i + 1]."""
    x = _crossings(np.sort(soft, axis=0)[-2:].mean(0))
    y = _crossings(np.sort(soft, axis=1)[:, -2:].mean(1))
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


def _overlaps(soft: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """Soft intersection over union with each outline stretched to ``box``."""
    height, width = soft.shape
    columns = (np.arange(width * _SUB) + 0.5) / _SUB
    rows = (np.arange(height * _SUB) + 0.5) / _SUB
    u = np.floor((columns - box[0]) / (box[2] - box[0]) * _GRID).astype(int)
    v = np.floor((rows - box[1]) / (box[3] - box[1]) * _GRID).astype(int)
    valid = ((v >= 0) & (v < _GRID))[:, None] & ((u >= 0) & (u < _GRID))[None]
    sampled = _templates()[:, np.clip(v, 0, _GRID - 1)][:, :, np.clip(u, 0, _GRID - 1)] * valid
    masks = sampled.reshape(len(SHAPES), height, _SUB, width, _SUB).mean((2, 4))
    return np.minimum(masks, soft).sum((1, 2)) / np.maximum(masks, soft).sum((1, 2))


@cache
def _templates() -> np.ndarray:
    """Each outline stretched to fill a square: float32 [6, grid, grid]."""
    masks = []
    for shape in SHAPES:
        image = Image.new("L", (_GRID, _GRID), 0)
        canvas = ImageDraw.Draw(image)
        polygon = outline(shape)
        if polygon is None:
            canvas.ellipse((0, 0, _GRID - 1, _GRID - 1), fill=1)
            if shape == "ring":
                margin = _GRID * (1 - RING_HOLE) / 2
                canvas.ellipse((margin, margin, _GRID - 1 - margin, _GRID - 1 - margin), fill=0)
        else:
            points = np.array(polygon)
            low, high = points.min(0), points.max(0)
            canvas.polygon([tuple(p) for p in (points - low) / (high - low) * (_GRID - 1)], fill=1)
        masks.append(np.asarray(image, np.float32))
    return np.stack(masks)


@cache
def _aspects() -> tuple[float, ...]:
    """Width over height of each outline."""
    ratios = []
    for shape in SHAPES:
        points = np.array(outline(shape) or [(-1, -1), (1, 1)])
        width, height = points.max(0) - points.min(0)
        ratios.append(float(width / height))
    return tuple(ratios)


def _core_color(crop: np.ndarray, soft: np.ndarray, rules: Rules) -> str | None:
    """Name of the colour of the region without its rim, or None if it is mixed or unnamed."""
    solid = soft > 0.5
    core = ndimage.binary_erosion(solid)
    pixels = crop[core if core.sum() >= 6 else solid]
    center = np.median(pixels, axis=0)
    if np.median(_distance(pixels, center)) > rules.spread:
        return None
    distances = _distance(_PALETTE, center)
    nearest = int(distances.argmin())
    return _NAMES[nearest] if distances[nearest] <= rules.palette_distance else None
