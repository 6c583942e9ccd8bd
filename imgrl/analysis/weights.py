"""Checkpoints as named matrices that are read a few rows at a time, whatever they are stored as."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from imgrl.errors import ModelError

__all__ = [
    "BLOCK",
    "Matrix",
    "Weights",
    "as_matrix",
    "blocks",
    "index_file",
    "open_file",
    "open_weights",
    "tensors",
]

BLOCK = 1 << 20
"""Entries of a matrix in memory at once."""
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_KINDS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8", "I32": "int32"}
_NETWORKS = ("transformer", "unet")  # the trained part of a diffusers pipeline
_OF_A_RUN = ("model", "lora")  # where a run folder has what it trained
_KERNEL = 16  # a 3-D tensor with a longer last side is a stack of matrices, not a 1-D convolution


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A tensor of a checkpoint as a matrix: a convolution's kernel is flattened, a vector is one row."""

    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    """Precision it is stored in; float32 for a LoRA merged on the fly."""
    rows: Callable[[int, int], Tensor]
    """``rows(a, b)`` reads the rows a to b - 1, [b - a, columns], in that precision."""
    merged_onto: Matrix | None = None
    """The stored matrix that an adapter is added to."""
    original: tuple[int, ...] = ()
    """Shape of the tensor in its file."""
    unread: str = ""
    """What it is stored as where that cannot be read, such as float8_e4m3fn; ``dtype`` is then int8."""

    @property
    def parameters(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]

    @property
    def side(self) -> int:
        """The shorter side: the greatest possible rank. A vector has 1."""
        return min(self.shape)


Weights = Mapping[str, Matrix]


def as_matrix(tensor: Tensor, name: str = "weight") -> Matrix:
    """A tensor in memory as a :class:`Matrix`."""
    flat = tensor.detach().reshape(_sides(tuple(tensor.shape)))
    return Matrix(
        name=name,
        shape=_sides(tuple(tensor.shape)),
        dtype=tensor.dtype,
        rows=lambda a, b: flat[a:b],
        original=tuple(tensor.shape),
    )


def blocks(shape: tuple[int, int], entries: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Ranges of whole rows that hold about ``entries`` entries each."""
    step = max(1, entries // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def open_weights(path: Path, base: Weights | None = None) -> Weights:
    """Open a checkpoint without reading its tensors.

    Args:
        path: a safetensors file; a folder of transformers or of one diffusers network, sharded or not; a diffusers
            pipeline (its transformer or unet is taken); a PEFT LoRA or an exported diffusers LoRA, by its folder
            or the run that holds it in ``lora/``.
        base: the weights that a LoRA is merged onto.

    Raises:
        ModelError: if it is none of these, is broken, or is a LoRA without a fitting base.
    """
    from imgrl.analysis import adapters

    if not path.exists():
        raise ModelError(f"{path} does not exist: give a safetensors file, a model folder or a LoRA's folder")
    lora = adapters.find(path)
    if lora is None:
        return _open_model(path)
    if base is None:
        raise ModelError(
            f"{path} is a LoRA, which says nothing without its base: give the model it was trained on as BASE"
        )
    return adapters.merge(lora, base)


def _open_model(path: Path) -> Weights:
    if path.is_file():
        return index_file(path)
    for network in _NETWORKS:
        if (path / "model_index.json").is_file() and (path / network).is_dir():
            return _open_model(path / network)
    index = sorted(path.glob("*.safetensors.index.json"))
    if index:
        return _open_shards(index[0])
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return index_file(files[0])
    if len(files) > 1:
        raise ModelError(
            f"{path} holds {len(files)} safetensors files without an index.json that names them: give one of the files"
        )
    if any(path.glob("*.bin")) or any(path.glob("*.pt")):
        raise ModelError(f"{path} holds pickled weights only: save the model again as safetensors")
    if inside := [str(path / part) for part in _OF_A_RUN if (path / part).is_dir()]:
        raise ModelError(
            f"{path} itself holds no weights, as a run folder does not: give {' or '.join(inside)}"
        )
    raise ModelError(
        f"{path} holds no weights: a *.safetensors file, sharded ones with their index.json, a diffusers pipeline, or "
        "a LoRA is expected there"
    )


def _open_shards(index: Path) -> Weights:
    try:
        table = json.loads(index.read_text())["weight_map"]
        files = sorted(set(table.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index of shards (no weight_map): download it again") from error
    found: dict[str, Matrix] = {}
    for name in files:
        if not (index.parent / name).is_file():
            raise ModelError(
                f"{index.parent / name} is missing, but {index.name} names it: download it again"
            )
        found |= index_file(index.parent / name)
    lost = sorted(name for name in table if name not in found and f"{name}[0]" not in found)
    if lost:
        raise ModelError(
            f"{index.parent} lacks {tensors(len(lost))} that its index names, the first is {lost[0]}"
        )
    return found


def open_file(path: Path) -> Any:
    """Open a safetensors file.

    Raises:
        ModelError: if it is broken, as a download that was cut short is, or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ModelError(f"{path} {_no_safetensors(path, error)}") from error


def _no_safetensors(path: Path, error: Exception) -> str:
    """Why a file is not read, and what to give instead, by what its name says it is."""
    if path.suffix == ".safetensors":
        return f"is truncated or no safetensors file ({error}): copy or download it again"
    if path.suffix == ".json":
        return f"holds settings and no weights: give the folder it lies in, {path.parent}"
    return (
        "is no safetensors file, and only those are read: load the model with the library that wrote it, transformers "
        "or diffusers, save it with save_pretrained, and give that folder"
    )


def index_file(path: Path) -> dict[str, Matrix]:
    """The matrices of one safetensors file, in its order; other than floating-point tensors have dtype int8.

    Rows are read from the file and not mapped into memory: mapped pages count as the process's memory until the file
    is closed.
    """
    open_file(path)  # checks the header against the file
    stream = path.open("rb")
    size = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(size))
    found: dict[str, Matrix] = {}
    for name, entry in header.items():
        shape = tuple(entry.get("shape", ()))
        if name == "__metadata__" or not math.prod(shape):
            continue
        kind = str(entry["dtype"])
        dtype, place = _DTYPES.get(kind, torch.int8), 8 + size + entry["data_offsets"][0]
        unread = "" if kind in _DTYPES else _KINDS.get(kind, kind)
        if len(shape) == 3 and shape[0] > 1 and shape[2] > _KERNEL:
            step = math.prod(shape[1:]) * dtype.itemsize
            for i in range(shape[0]):
                part = f"{name}[{i}]"
                found[part] = _stored(stream, part, shape[1:], dtype, place + i * step, unread)
        else:
            found[name] = _stored(stream, name, shape, dtype, place, unread)
    return found


def _stored(
    stream: BinaryIO, name: str, shape: tuple[int, ...], dtype: torch.dtype, place: int, unread: str
) -> Matrix:
    sides = _sides(shape)

    def rows(a: int, b: int) -> Tensor:
        buffer = bytearray((b - a) * sides[1] * dtype.itemsize)
        stream.seek(place + a * sides[1] * dtype.itemsize)
        if stream.readinto(buffer) != len(buffer):  # pyright: ignore[reportAttributeAccessIssue]
            raise ModelError(f"{stream.name} became shorter while it was read: let its writer finish")
        return torch.frombuffer(buffer, dtype=dtype).reshape(b - a, sides[1])

    return Matrix(name=name, shape=sides, dtype=dtype, rows=rows, original=shape, unread=unread)


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def tensors(count: int) -> str:
    """``1 tensor``, ``2 tensors``, for sentences."""
    return f"{count} tensor{'' if count == 1 else 's'}"
