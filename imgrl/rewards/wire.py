"""What a reward server and its client say to each other: images as safetensors, everything else as JSON, never pickle.

A request is one safetensors blob: tensor ``images`` uint8 [n, 3, H, W] and metadata ``request``, the JSON of prompts and
columns. An answer is JSON: ``{"scores": [1.5, null, ...]}``, null where the reward does not apply.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from imgrl.rewards.pixels import to_uint8

__all__ = ["PROTOCOL", "WireError", "pack", "read_scores", "unpack", "write_scores"]

PROTOCOL = 1
"""Number of this format; a server and a client of different numbers refuse each other."""


class WireError(ValueError):
    """A message that does not say what it should."""


def pack(images: Tensor, prompts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> bytes:
    """The request for images float [n, 3, H, W] in [0, 1].

    Raises:
        WireError: if a column holds what JSON cannot say.
    """
    try:
        request = json.dumps(
            {
                "protocol": PROTOCOL,
                "prompts": list(prompts),
                "columns": {k: list(v) for k, v in columns.items()},
            },
            allow_nan=False,
        )
    except (TypeError, ValueError) as error:
        raise WireError(f"a column cannot be sent as JSON ({error})") from error
    pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).contiguous()
    return save({"images": pixels}, metadata={"request": request})


def unpack(blob: bytes, *, most_images: int) -> tuple[Tensor, list[str], dict[str, list[Any]]]:
    """Images float32 in [0, 1], prompts and columns of a request.

    Raises:
        WireError: saying what is wrong with it.
    """
    images, request = _parts(blob)
    prompts, columns = request.get("prompts"), request.get("columns")
    if request.get("protocol") != PROTOCOL:
        raise WireError(f"protocol {request.get('protocol')!r}, this server speaks {PROTOCOL}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise WireError(f"images must be uint8 [n, 3, H, W], got {images.dtype} {list(images.shape)}")
    count = len(images)
    if not 0 < count <= most_images:
        raise WireError(f"between 1 and {most_images} images a request, got {count}")
    if not isinstance(prompts, list) or len(prompts) != count or not all(isinstance(p, str) for p in prompts):
        raise WireError(f"prompts must be {count} texts, one an image")
    if not isinstance(columns, dict) or any(
        not isinstance(v, list) or len(v) != count for v in columns.values()
    ):
        raise WireError(f"every column must be a list of {count} values, one an image")
    return images.float() / 255, prompts, columns


def _parts(blob: bytes) -> tuple[Tensor, dict[str, Any]]:
    try:
        images = load(blob)["images"]
        length = int.from_bytes(blob[:8], "little")
        request = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["request"])
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise WireError(f"not a request ({type(error).__name__}: {error})") from error
    if not isinstance(request, dict):
        raise WireError("the metadata `request` must be a JSON object")
    return images, request


def write_scores(scores: Tensor) -> dict[str, Any]:
    """The answer to a request; NaN, "does not apply", becomes null."""
    return {"protocol": PROTOCOL, "scores": [None if math.isnan(v) else v for v in scores.tolist()]}


def read_scores(answer: Any, count: int) -> list[float | None]:
    """The scores of an answer.

    Raises:
        WireError: if it is not ``count`` finite numbers or nulls.
    """
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        raise WireError(f"expected a JSON object with {count} scores")
    for score in scores:
        number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        if score is not None and not number:
            raise WireError(f"expected finite numbers or null, got {score!r}")
    return scores
