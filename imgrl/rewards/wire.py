"""What a reward server and its client say to each other: images as safetensors, the rest as JSON, never pickle.

A request is one safetensors blob: tensor ``images`` uint8 [n, 3, H, W] and metadata ``request``, the JSON of prompts
and columns. An answer is JSON: ``{"scores": [1.5, null, ...], ...}``, null where the reward does not apply.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from imgrl.rewards.pixels import to_uint8

__all__ = ["PROTOCOL", "WireError", "pack", "parse", "read_scores", "unpack", "write_scores"]

PROTOCOL = 1
"""Number of this format; a server and a client of different numbers refuse each other."""

_LARGEST = torch.finfo(torch.float32).max


class WireError(ValueError):
    """A message that does not say what it should."""


def pack(images: Tensor, prompts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Return the request for images float [n, 3, H, W] in [0, 1], which travel in 8 bits.

    Raises:
        WireError: if a column holds what JSON cannot say.
    """
    for name, values in columns.items():
        try:
            json.dumps(list(values), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise WireError(f"the column {name!r} cannot be sent as JSON ({error})") from error
    request = {
        "protocol": PROTOCOL,
        "prompts": list(prompts),
        "columns": {name: list(values) for name, values in columns.items()},
    }
    pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).contiguous()
    return save({"images": pixels}, metadata={"request": json.dumps(request)})


def unpack(blob: bytes, *, most_images: int) -> tuple[Tensor, list[str], dict[str, list[Any]]]:
    """Return images float32 [n, 3, H, W] in [0, 1], prompts and columns of a request.

    Raises:
        WireError: saying what is wrong with it.
    """
    images, request = _parts(blob)
    prompts, columns = request.get("prompts"), request.get("columns")
    if request.get("protocol") != PROTOCOL:
        raise WireError(
            f"the request is of protocol {request.get('protocol')!r}, this server speaks {PROTOCOL}"
        )
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise WireError(f"images must be uint8 [n, 3, H, W], got {images.dtype} {list(images.shape)}")
    count = len(images)
    if count > most_images:
        raise WireError(f"a request may hold at most {most_images} images, got {count}")
    if not isinstance(prompts, list) or len(prompts) != count or not all(isinstance(p, str) for p in prompts):
        raise WireError(f"prompts must be {count} texts, one an image")
    if not isinstance(columns, dict) or any(
        not isinstance(v, list) or len(v) != count for v in columns.values()
    ):
        raise WireError(f"every column must be a list of {count} values, one an image")
    return images.float() / 255, prompts, columns


def _parts(blob: bytes) -> tuple[Tensor, dict[str, Any]]:
    try:
        tensors = load(blob)
        length = int.from_bytes(blob[:8], "little")
        request = parse(parse(blob[8 : 8 + length])["__metadata__"]["request"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise WireError(
            f"a request is a safetensors blob with metadata `request` in JSON ({type(error).__name__}: {error})"
        ) from error
    if set(tensors) != {"images"} or not isinstance(request, dict):
        raise WireError("a request has one tensor, `images`, and a JSON object as metadata `request`")
    return tensors["images"], request


def parse(text: bytes | str) -> Any:
    """Return what JSON says, strictly: no NaN, no infinity, no bottomless nesting.

    Raises:
        ValueError: if it is something else.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def write_scores(scores: Tensor) -> list[float | None]:
    """Return the scores of an answer; NaN, "does not apply", becomes null."""
    return [None if math.isnan(value) else value for value in scores.tolist()]


def read_scores(answer: Any, count: int) -> list[float | None]:
    """Return the scores of an answer.

    Raises:
        WireError: if it has not ``count`` finite numbers or nulls.
    """
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        got = f"{len(scores)} scores" if isinstance(scores, list) else "no list of scores"
        raise WireError(f"the server was given {count} images and answered with {got}")
    for score in scores:
        number = isinstance(score, int | float) and not isinstance(score, bool)
        # Compared, not converted: a whole number in JSON may be longer than any float. NaN is in no range.
        if score is not None and not (number and -_LARGEST <= score <= _LARGEST):
            raise WireError(f"the server must answer finite numbers or null, got {str(score)[:40]}")
    return scores
