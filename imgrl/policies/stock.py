"""Opening the stock diffusers pipeline of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["open_stock_pipeline"]


def open_stock_pipeline(folder: Path, *, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
    """The diffusers pipeline of ``folder``, with ``components`` in place of its own (None leaves one out).

    A folder saved without a component (SD3 without T5) cannot be opened by ``from_pretrained`` alone: diffusers wants
    the absence repeated, which is done here.
    """
    import diffusers

    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if isinstance(entry, list) and entry[1] is None}
    kind = getattr(diffusers, index["_class_name"])
    pipeline = kind.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, **{**absent, **components}
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
