"""Reads text with RapidOCR: PaddleOCR's PP-OCRv4, the engine of Flow-GRPO's reward, on onnxruntime.

It reads smaller letters than EasyOCR, capitals of 6 pixels, and is faster on a CPU; its weights come with the package.
That package asks for opencv-python, which breaks opencv-python-headless, so it is installed without its dependencies.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from imgrl.errors import RewardError

__all__ = ["RapidReader"]


class RapidReader:
    """PP-OCRv4's detector and recogniser, without the classifier of upside-down text, as in Flow-GRPO.

    Args:
        side: pixels to which the shorter side is enlarged for the detector. Never shrinks.

    Raises:
        RewardError: if RapidOCR is not installed.
    """

    def __init__(self, *, side: int = 256) -> None:
        if importlib.util.find_spec("rapidocr_onnxruntime") is None:
            raise RewardError(
                "Reward 'ocr' with engine 'rapidocr' needs rapidocr-onnxruntime, not installed here; run "
                "`pip install onnxruntime six` and `pip install --no-deps rapidocr-onnxruntime`."
            )
        from rapidocr_onnxruntime import RapidOCR  # pyright: ignore[reportMissingImports]

        self._engine: Any = RapidOCR(det_limit_side_len=side, det_limit_type="min", use_cls=False)

    def read(self, pictures: np.ndarray) -> list[list[tuple[str, float]]]:
        """Lines and confidences of each picture uint8 [n, H, W, 3]; those below 0.5 are left out."""
        found = []
        for pixels in pictures:
            lines, _ = self._engine(np.ascontiguousarray(pixels[..., ::-1]))  # it takes blue first
            found.append([(text, float(confidence)) for _, text, confidence in lines or ()])
        return found
