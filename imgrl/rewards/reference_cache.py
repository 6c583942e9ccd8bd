"""References as the policy's autoencoder draws them, and their features, kept on disk between starts.

A picture's round trip is found again by its pixels and the autoencoder (weights, precision, device, library version),
a picture's features by the pixels after the round trip and the backbone. One safetensors file each, renamed into place
when it is whole, so that several processes and runs may share a folder. A round trip is kept in 8 bits, as backbones
see it anyway (:func:`imgrl.rewards.features.prepared`), and given in 8 bits the first time too.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from imgrl.rewards.features import Extractor, Features
from imgrl.rewards.fingerprint import digest

__all__ = ["KeptRoundTrip", "ReferenceCache"]

Rows = dict[str, Tensor]
"""Tensors of one image by name, or of several with their number in front."""

_AT_ONCE = 32  # images handed over together


class ReferenceCache:
    """Tensors of pictures in a folder, by key; what is not there is made and kept.

    Args:
        folder: made when something is first written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __call__(self, images: Tensor, identity: str, make: Callable[[Tensor], Rows]) -> Rows:
        """What ``make(images)`` says of images [n, ...], asking it only for those that are not kept.

        Args:
            images: of any type; equal bytes are the same image.
            identity: of everything else that the result depends on.
            make: images [m, ...] to tensors [m, ...] by name, row by row.
        """
        keys = [_key(image, identity) for image in images]
        found = {key: row for key in dict.fromkeys(keys) if (row := self._read(key)) is not None}
        lacking = [i for i, key in enumerate(keys) if key not in found and keys.index(key) == i]
        for start in range(0, len(lacking), _AT_ONCE):
            part = lacking[start : start + _AT_ONCE]
            made = {name: rows.detach().cpu() for name, rows in make(images[part]).items()}
            for place, i in enumerate(part):
                found[keys[i]] = {name: rows[place].contiguous() for name, rows in made.items()}
                self._write(keys[i], found[keys[i]])
        return {name: torch.stack([found[key][name] for key in keys]) for name in found[keys[0]]}

    def features(self, images: Tensor, extractor: Extractor) -> Features:
        """The extractor's features of images [n, 3, H, W] in [0, 1], in main memory."""
        made = self(images, extractor.identity, lambda part: extractor(part)._asdict())
        return Features(*(made[name] for name in Features._fields))

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _read(self, key: str) -> Rows | None:
        """A kept row; None where there is none or its bytes have changed, which is said."""
        from safetensors import SafetensorError, safe_open

        file = self._file(key)
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                row = {name: opened.get_tensor(name) for name in opened.keys()}
                told = (opened.metadata() or {}).get("digest")
        except (SafetensorError, OSError, ValueError) as error:
            return _said(file, str(error))
        return row if told == digest(row, key) else _said(file, "its tensors do not match their checksum")

    def _write(self, key: str, row: Rows) -> None:
        """Keep a row; where the disk refuses, the run goes on without and the user is told."""
        from safetensors.torch import save

        body = save(row, metadata={"digest": digest(row, key)})
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A name of its own, because other processes may write the same picture.
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            os.close(handle)
            temporary = Path(name)
            temporary.write_bytes(body)
            os.replace(temporary, self._file(key))
        except OSError as error:
            warnings.warn(
                f"The reference cache {self.folder} cannot be written ({error}); the next start computes again.",
                stacklevel=4,
            )
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


class KeptRoundTrip:
    """An autoencoder's round trip that is computed once for each picture; ``cache`` is free for more of its kind.

    Args:
        round_trip: images [n, 3, H, W] in [0, 1] to images of the same form.
        identity: of the autoencoder, and of how it computes.
        cache: where results lie.
    """

    def __init__(
        self, round_trip: Callable[[Tensor], Tensor], *, identity: str, cache: ReferenceCache
    ) -> None:
        self.round_trip, self.identity, self.cache = round_trip, identity, cache

    def __call__(self, images: Tensor) -> Tensor:
        """Images float32 [n, 3, H, W] in [0, 1], of 256 levels."""
        return self.cache(images, self.identity, self._drawn)["pixels"].float() / 255

    def _drawn(self, images: Tensor) -> Rows:
        return {"pixels": self.round_trip(images).float().mul(255).round().clamp(0, 255).byte()}


def _key(image: Tensor, identity: str) -> str:
    head = repr((identity, image.dtype, tuple(image.shape))).encode()
    return hashlib.sha256(head + image.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _said(file: Path, reason: str) -> None:
    warnings.warn(f"The cached reference {file} is corrupted ({reason}); it is computed again.", stacklevel=5)
