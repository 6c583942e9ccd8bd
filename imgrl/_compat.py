"""Makes a CUDA-built torchvision importable beside a CPU-only torch.

The torchvision wheel on PyPI is built against CUDA. Beside a CPU torch its C++ library cannot load, the error is
swallowed, and the import then dies on ``operator torchvision::nms does not exist``; timm, easyocr, open_clip, peft,
transformers and diffusers die with it. Declaring the two operators that torchvision registers fake kernels for is
enough for transforms and models to work. Where torchvision's own library loads, nothing is done.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_library: torch.library.Library | None = None  # must stay alive: the definitions go with it

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def repair_torchvision() -> bool:
    """Declare torchvision's missing operators if its binary cannot load; return whether that was needed."""
    global _library
    if _library is not None:
        return True
    if "torchvision" in sys.modules:  # it imported, so it works
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    binary = next(Path(spec.origin).parent.glob("_C*.so"), None)
    if binary is not None and _loads(binary):
        return False
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    return True


def _loads(binary: Path) -> bool:
    try:
        torch.ops.load_library(binary)
    except OSError:
        return False
    return True
