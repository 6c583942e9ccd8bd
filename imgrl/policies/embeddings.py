"""Text embeddings, computed once a prompt and kept in memory and, if wanted, on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from imgrl.types import Conditioning

__all__ = ["EmbeddingTable", "encoder_revision", "select"]

_SMALL = 64 << 20  # files up to this size are hashed whole
_BLOCK, _BLOCKS = 64 << 10, 64


def encoder_revision(folder: Path) -> str:
    """Fingerprint of the text encoders and tokenizers of a model folder.

    Small files are hashed whole; of files above 64 MiB, the size and 64 evenly spaced blocks, which takes
    milliseconds and changes with any retraining.
    """
    digest = hashlib.sha256()
    for part in sorted([*folder.glob("text_encoder*"), *folder.glob("tokenizer*")]):
        for file in sorted(path for path in part.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder)}:{file.stat().st_size};".encode())
            _hash_file(digest, file)
    return digest.hexdigest()[:16]


def _hash_file(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _SMALL:
            digest.update(stream.read())
            return
        for index in range(_BLOCKS):
            stream.seek((size - _BLOCK) * index // (_BLOCKS - 1))
            digest.update(stream.read(_BLOCK))


def select(cond: Conditioning, rows: Tensor | Sequence[int] | slice) -> Conditioning:
    """The conditioning of some of its rows."""
    return Conditioning(tensors={name: tensor[rows] for name, tensor in cond.tensors.items()})


class EmbeddingTable:
    """Embeddings by prompt. Each prompt is encoded alone, so a row never depends on its neighbours.

    Args:
        encode: maps one prompt to its tensors, without a batch axis.
        identity: everything else the result depends on (encoder revision, dtype, length), asked once.
        folder: where to keep embeddings as safetensors; None keeps them in memory only.
    """

    def __init__(
        self,
        encode: Callable[[str], dict[str, Tensor]],
        identity: Callable[[], Mapping[str, str]],
        folder: Path | None = None,
    ) -> None:
        self._encode = encode
        self._identity = identity
        self._known: Mapping[str, str] | None = None
        self._rows: dict[str, dict[str, Tensor]] = {}
        self.folder = folder

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._rows

    def __call__(self, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """Embeddings of ``prompts`` on ``device``, stacked along a first axis [n, ...]."""
        rows = [self._row(prompt) for prompt in prompts]
        return Conditioning(tensors={k: torch.stack([row[k] for row in rows]).to(device) for k in rows[0]})

    def clear(self) -> None:
        """Forget what is in memory; files stay."""
        self._rows.clear()

    def path(self, prompt: str) -> Path | None:
        """File of a prompt's embedding, or None without a folder."""
        if self.folder is None:
            return None
        if self._known is None:
            self._known = dict(self._identity())
        key = json.dumps({**self._known, "prompt": prompt}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _row(self, prompt: str) -> dict[str, Tensor]:
        if prompt not in self._rows:
            path = self.path(prompt)
            row = _read(path) if path is not None and path.exists() else None
            if row is None:
                row = {
                    name: tensor.detach().cpu().contiguous() for name, tensor in self._encode(prompt).items()
                }
                if path is not None:
                    _write(path, row)
            self._rows[prompt] = row
        return self._rows[prompt]


def _read(path: Path) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        warnings.warn(
            f"The cached text embedding {path} is corrupted ({error}); it is computed again.", stacklevel=4
        )
        return None


def _write(path: Path, row: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, suffix=".tmp"
    )  # unique: other ranks may write the same
    with os.fdopen(handle, "wb") as stream:
        stream.write(save(row))
    os.replace(temporary, path)
