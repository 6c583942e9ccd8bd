"""Opening the stock diffusers pipeline of a model folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

__all__ = ["open_stock_pipeline", "precision", "quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers' warnings off the screen inside the block."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def precision(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The keyword by which this diffusers' ``from_pretrained`` takes a dtype; it was renamed in 0.42."""
    import diffusers

    major, minor = (int(part) for part in diffusers.__version__.split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 42) else "torch_dtype": dtype}


def open_stock_pipeline(folder: Path, *, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
    """The diffusers pipeline of ``folder``, with ``components`` in place of its own (None leaves one out).

    A folder saved without a component (SD3 without T5) cannot be opened by ``from_pretrained`` alone:
    diffusers wants the absence repeated, which is done here.
    """
    import diffusers

    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if isinstance(entry, list) and entry[1] is None}
    kind = getattr(diffusers, index["_class_name"])
    pipeline = kind.from_pretrained(
        folder, use_safetensors=True, **precision(dtype), **{**absent, **components}
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
