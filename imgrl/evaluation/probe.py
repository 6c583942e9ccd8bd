"""A second opinion on ShapeEval that shares nothing with its detector but the judge.

Objects are connected regions that differ from the background; a linear probe on EfficientNet-Lite0 features
names shape and colour, learned from rendered single objects. It knows no outlines and no palette, so what a
policy learns to exploit in the rule-based detector does not carry over. Measured on rendered truth: shape and
colour 1.00 on fresh single objects, ``correct`` 1.00 on all six tasks (0.99 after a blur of 1.2 pixels, 0.95
through the bundled autoencoder), 0 on noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from imgrl.evaluation.geneval import judge as geneval
from imgrl.evaluation.geneval.judge import Box, Verdict
from imgrl.rewards.backbone import Backbone, load_backbone
from imgrl.rewards.pixels import to_uint8
from imgrl.types import Prompt
from imgrl.world.render import Placed, draw
from imgrl.world.vocabulary import BACKGROUNDS, COLORS, IMAGE_SIZE, SHAPES

__all__ = ["Probe", "Region", "fit_probe", "probe_accuracy", "probe_score", "regions"]

_SIDE = 128  # pixels of a crop
_GROUND = 153  # crops stand on #999, as in GenEval
_MARGIN = 0.2  # of the longer side, around the object
_DIFFERS, _LEAST_AREA, _UNIFORM = 40.0, 20, 0.75  # colour distance (8 bit), pixels, share of the border
_EDGE = 0.35  # share of the contrast inside an object that its edge has
_REACH = 9  # pixels over which to look for the inside
_TINT = 8.0  # standard deviation of a channel: generated colours are never exact
_BLUR = 1.8  # most, in pixels; four examples in five are softened, as a decoder softens its pictures
_SURE = 0.5  # least response of the shape probe, trained to say 1: below it a region is no object
_RIDGE = 0.1  # share of the mean squared feature
_RULES = geneval.Rules(threshold=0.0, counting_threshold=0.0, clip=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """One candidate object."""

    crop: np.ndarray
    """uint8 [128, 128, 3], the region alone on grey."""
    box: Box


def regions(image: np.ndarray) -> list[Region]:
    """Connected regions of ``image`` (uint8 [H, W, 3]) unlike its border; none if that is not flat."""
    pixels = image.astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    if np.mean(np.linalg.norm(border - ground, axis=1) < _DIFFERS) < _UNIFORM:
        return []
    contrast = np.linalg.norm(pixels - ground, axis=2)
    # What is much fainter than the object beside it is its halo, or a bridge between neighbours.
    inside = ndimage.maximum_filter(contrast, size=_REACH)
    labeled: Any = ndimage.label((contrast > _DIFFERS) & (contrast > _EDGE * inside))
    labels, count = labeled
    found = []
    for label in range(1, count + 1):
        ys, xs = np.nonzero(labels == label)
        if len(ys) < _LEAST_AREA:
            continue
        box = Box(float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        found.append(Region(crop=_crop(image, labels == label, box), box=box))
    return found


def _crop(image: np.ndarray, mask: np.ndarray, box: Box) -> np.ndarray:
    """The masked pixels on grey, in a square around ``box``, enlarged."""
    alone = Image.fromarray(np.where(mask[..., None], image, np.uint8(_GROUND)))
    half = max(box.x2 - box.x1, box.y2 - box.y1) * (0.5 + _MARGIN)
    x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
    room = round(2 * half) + 1  # so that the square never leaves the canvas
    canvas = Image.new("RGB", (alone.width + 2 * room, alone.height + 2 * room), (_GROUND,) * 3)
    canvas.paste(alone, (room, room))
    square = (x - half + room, y - half + room, x + half + room, y + half + room)
    return np.asarray(canvas.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box=square))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Linear maps from features to shapes and colours."""

    backbone: Backbone
    mean: Tensor
    """[d] of the training features."""
    scale: Tensor
    """[d] standard deviations."""
    weight: Tensor
    """[d + 1, shapes + colours]"""

    def responses(self, crops: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Responses [n, shapes] and [n, colours] to crops (uint8 [128, 128, 3])."""
        features = (_features(self.backbone, crops) - self.mean) / self.scale
        both = torch.cat([features, torch.ones(len(features), 1)], dim=1) @ self.weight
        return both[:, : len(SHAPES)], both[:, len(SHAPES) :]


def _features(backbone: Backbone, crops: Sequence[np.ndarray]) -> Tensor:
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    return backbone.pooled(images)


def _examples(count: int, seed: int) -> tuple[list[np.ndarray], Tensor, Tensor]:
    """Crops of rendered single objects of every size, sharp or softened, with their shapes and colours."""
    rng = np.random.default_rng(seed)
    crops, shapes, colors = [], [], []
    while len(crops) < count:
        shape, color, ground = (int(rng.integers(len(names))) for names in (SHAPES, COLORS, BACKGROUNDS))
        radius = rng.uniform(7, 22)
        x, y = rng.uniform(radius + 2, IMAGE_SIZE - radius - 2, 2)
        item = Placed(shape=SHAPES[shape], color=list(COLORS)[color], x=x, y=y, radius=radius)
        image = _tinted(item, list(BACKGROUNDS)[ground], rng.normal(0, _TINT, 3))
        blur = max(rng.uniform(-_BLUR / 4, _BLUR), 0)
        image = ndimage.gaussian_filter(image, (blur, blur, 0)).clip(0, 255).round().astype(np.uint8)
        found = regions(image)
        if len(found) == 1:
            crops.append(found[0].crop)
            shapes.append(shape)
            colors.append(color)
    return crops, torch.tensor(shapes), torch.tensor(colors)


def _tinted(item: Placed, background: str, tint: np.ndarray) -> np.ndarray:
    """float64 [H, W, 3]: a rendered object whose colour is off by ``tint``."""
    image = draw([item], background=background).astype(np.float64)
    ground, color = np.array(BACKGROUNDS[background]), np.array(COLORS[item.color])
    covered = (image - ground) @ (color - ground) / np.sum((color - ground) ** 2)
    return image + covered[..., None] * tint


@cache
def fit_probe(*, count: int = 1000, seed: int = 0) -> Probe:
    """Ridge regression of one-hot names on standardised features of ``count`` examples; kept in memory.

    Raises:
        ModelError: if the network or its weights are not installed.
    """
    backbone = load_backbone()
    crops, shapes, colors = _examples(count, seed)
    features = _features(backbone, crops)
    mean, scale = features.mean(0), features.std(0) + 1e-3
    x = torch.cat([(features - mean) / scale, torch.ones(count, 1)], dim=1).double()
    names = torch.cat([_one_hot(shapes, len(SHAPES)), _one_hot(colors, len(COLORS))], dim=1)
    # With fewer examples than features the dual form is the small system.
    weight = x.T @ torch.linalg.solve(x @ x.T + _RIDGE * x.shape[1] * torch.eye(count, dtype=x.dtype), names)
    return Probe(backbone=backbone, mean=mean, scale=scale, weight=weight.float())


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).double()


def probe_accuracy(*, count: int = 200, seed: int = 1) -> tuple[float, float]:
    """Share of fresh rendered single objects whose shape, and whose colour, the probe names rightly."""
    crops, shapes, colors = _examples(count, seed)
    shape, color = fit_probe().responses(crops)
    return float((shape.argmax(1) == shapes).float().mean()), float(
        (color.argmax(1) == colors).float().mean()
    )


def probe_score(images: Tensor, prompts: Sequence[Prompt]) -> list[Verdict | None]:
    """Judge images [n, 3, H, W] in [0, 1] as :func:`imgrl.evaluation.shapes.score_images` does, by the probe.

    Raises:
        ModelError: if the network or its weights are not installed.
        ValueError: if there is not one prompt an image.
    """
    if len(images) != len(prompts):
        raise ValueError(
            f"The probe needs one prompt an image, got {len(images)} images, {len(prompts)} prompts."
        )
    probe = fit_probe()
    return [
        _judge(probe, pixels, prompt) if prompt.columns.get("include") else None
        for pixels, prompt in zip(to_uint8(images), prompts, strict=True)
    ]


def _judge(probe: Probe, pixels: np.ndarray, prompt: Prompt) -> Verdict:
    boxes: dict[str, list[Box]] = {}
    names: dict[Box, str] = {}
    found = regions(pixels)
    if found:
        shape, color = probe.responses([region.crop for region in found])
        for region, sure, which, hue in zip(
            found, shape.amax(1), shape.argmax(1), color.argmax(1), strict=True
        ):
            if sure >= _SURE:
                boxes.setdefault(SHAPES[which], []).append(region.box)
                names[region.box] = list(COLORS)[hue]
    return geneval.judge(
        prompt.columns, boxes, lambda _, wanted: [names[box] for box in wanted], rules=_RULES
    )
