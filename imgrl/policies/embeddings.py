"""Text embeddings, computed once a prompt and kept in memory and, if wanted or needed, on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imgrl.errors import ConfigError
from imgrl.types import Conditioning

if TYPE_CHECKING:
    from imgrl.policies.base import Policy

__all__ = ["EmbeddingTable", "encode_ahead", "encoder_revision", "select"]

_GIB = 2**30
_IN_MEMORY = 2 * _GIB  # bytes of rows; about 800 prompts of SD3.5 with T5, 500 of Flux
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

    With a folder, memory keeps the rows used last, up to ``capacity`` bytes, and reads the others back; without one
    it keeps them all.

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
        self._rows: dict[str, dict[str, Tensor]] = {}  # in the order of their last use
        self._held = 0
        self.capacity = _IN_MEMORY
        self.folder = folder

    def __contains__(self, prompt: str) -> bool:
        """Whether it can be had without encoding it."""
        path = self.path(prompt)
        return prompt in self._rows if path is None else _whole(path)

    def __call__(self, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """Embeddings of ``prompts`` on ``device``, stacked along a first axis [n, ...]."""
        rows = [self._row(prompt) for prompt in prompts]
        return Conditioning(tensors={k: torch.stack([row[k] for row in rows]).to(device) for k in rows[0]})

    def bytes_for(self, count: int) -> int:
        """Bytes of the rows of ``count`` prompts and the empty one; encoders pad, so all are equally large."""
        return (count + 1) * _bytes(self._row(""))

    def load(self, prompts: Sequence[str]) -> None:
        """Encode what cannot be had yet, and read the rest where memory has room for all of them."""
        read = self.bytes_for(len(prompts)) <= self.capacity
        for prompt in prompts:
            if read or prompt not in self:
                self._row(prompt)

    def keep_in(self, folder: Path) -> None:
        """Keep rows in ``folder`` from now on, those of before included."""
        self.folder = folder
        for prompt, row in self._rows.items():
            if prompt not in self:
                _write(folder / self._name(prompt), row)

    def path(self, prompt: str) -> Path | None:
        """File of a prompt's embedding, or None without a folder."""
        return None if self.folder is None else self.folder / self._name(prompt)

    def _name(self, prompt: str) -> str:
        if self._known is None:
            self._known = dict(self._identity())
        key = json.dumps({**self._known, "prompt": prompt}, sort_keys=True)
        return f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _row(self, prompt: str) -> dict[str, Tensor]:
        row = self._rows.pop(prompt, None)
        if row is None:
            row = self._fetch(prompt)
            self._held += _bytes(row)
        self._rows[prompt] = row
        self._evict()
        return row

    def _fetch(self, prompt: str) -> dict[str, Tensor]:
        path = self.path(prompt)
        row = _read(path) if path is not None and path.exists() else None
        if row is None:
            row = {name: tensor.detach().cpu().contiguous() for name, tensor in self._encode(prompt).items()}
            if path is not None:
                _write(path, row)
        return row

    def _evict(self) -> None:
        """Forget the rows not used for longest, which files hold; the empty prompt stays: guidance needs it."""
        while self.folder is not None and self._held > self.capacity:
            oldest = next((prompt for prompt in self._rows if prompt), None)
            if oldest is None:
                return
            self._held -= _bytes(self._rows.pop(oldest))


def encode_ahead(
    policy: Policy,
    prompts: Sequence[str],
    folder: Path,
    *,
    rank: int = 0,
    size: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> str | None:
    """Embed ``prompts`` so that none needs a text encoder later, and free the encoders.

    Up to 2 GiB of embeddings stay in memory, as do all without files. More become files in the policy's embedding
    folder or, if it has none, in ``folder``. Where there are files, processes share the work.

    Args:
        policy: whose encoders to use; its rows are then served from memory or from files.
        prompts: different texts, the same on every process.
        folder: for embeddings that are too many for memory; made if it is needed.
        rank: number of this process.
        size: number of processes that share the work.
        wait: blocks until every process is there.

    Returns:
        A sentence saying where the embeddings are, if not in memory.

    Raises:
        ConfigError: the disk has too little room for them.
    """
    table = policy._embeddings
    needed = table.bytes_for(len(prompts))
    if needed > table.capacity:
        if table.folder is None:
            table.keep_in(folder)
        _check_room(table, prompts, needed)
    if table.folder is not None and size > 1:
        table.load(prompts[rank::size])
        wait()
    table.load(prompts)  # with others' shares, encoded here too if their disk is not this one's
    policy.drop_encoders()
    if needed <= table.capacity:
        return None
    size_told = f"{needed / _GIB:.1f} GiB"
    return f"{len(prompts)} prompts: their text embeddings ({size_told}) are files in {table.folder}"


def _check_room(table: EmbeddingTable, prompts: Sequence[str], needed: int) -> None:
    assert table.folder is not None
    table.folder.mkdir(parents=True, exist_ok=True)
    needed = needed * sum(prompt not in table for prompt in prompts) // (len(prompts) + 1)
    free = shutil.disk_usage(table.folder).free
    if needed > free:
        raise ConfigError(
            f"The text embeddings of {len(prompts)} prompts need {needed / _GIB:.1f} GiB more on disk, but "
            f"{table.folder} has {free / _GIB:.1f} GiB left: set model.embedding_folder to a folder on a larger "
            "disk, or give fewer prompts."
        )


def _bytes(row: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in row.values())


def _whole(path: Path) -> bool:
    """Whether the file is there in its full length, by its header: one cut short must be found before training."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return True
    except (SafetensorError, OSError, ValueError):
        return False


def _read(path: Path) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        warnings.warn(
            f"The cached text embedding {path} is corrupted ({error}); it is computed again.", stacklevel=5
        )
        return None


def _write(path: Path, row: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, because other ranks may write the same prompt.
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.write_bytes(save(row))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
