"""Makes a CUDA-built torchvision importable beside a CPU-only torch.

The torchvision wheel on PyPI is built against CUDA. Beside a CPU torch its C++ library cannot load, the error
is swallowed, and the import then dies on ``operator torchvision::nms does not exist``; timm, easyocr, peft,
transformers and diffusers die with it. Declaring the two operators that torchvision registers fakes for is
enough for transforms and models to work. Where torchvision's own library loads, nothing is done.

``import imgrl`` only leaves a watch for the first look at torchvision, so it need not import torch itself.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["repair_torchvision", "watch_for_torchvision"]

_library: Any = None  # the torch.library.Library must stay alive: the definitions go with it

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _Watch(MetaPathFinder):
    """Finds nothing; repairs torchvision just before the finders after it are asked for it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Act on the first question for torchvision, then step out of the way."""
        del path, target
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            repair_torchvision()
        return None


def watch_for_torchvision() -> None:
    """Repair torchvision when something first looks for it."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


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
    import torch

    binary = next(Path(spec.origin).parent.glob("_C*.so"), None)
    if binary is not None and _loads(binary):
        return False
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    return True


def _loads(binary: Path) -> bool:
    import torch

    try:
        torch.ops.load_library(binary)
    except OSError:
        return False
    return True
