"""ShapeEval: GenEval's rules applied to what the rule-based detector finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imgrl.evaluation.geneval import judge as geneval
from imgrl.evaluation.geneval.judge import Box, Verdict
from imgrl.world.detector import Rules, detect

__all__ = ["GRADES", "judge_image"]

# The detector accepts or refuses, so GenEval's confidence thresholds do not apply; the partial score is a
# reward.
_GENEVAL_RULES = geneval.Rules(threshold=0.0, counting_threshold=0.0, clip=True)
_DETECTOR_RULES = Rules()
GRADES = (
    Rules(shape_iou=0.5, aspect=1.8, sharp=0.2),
    Rules(shape_iou=0.62, aspect=1.5, sharp=0.33),
    _DETECTOR_RULES,
)
"""Detectors from lenient to official, for a training reward that rises before a shape is clean."""


def judge_image(image: np.ndarray, metadata: Mapping[str, Any], *, rules: Rules = _DETECTOR_RULES) -> Verdict:
    """Judge ``image`` (uint8 [H, W, 3]) against GenEval ``metadata`` (``tag``, ``include``, ``exclude``).

    Raises:
        ValueError: if the metadata is not a GenEval row.
    """
    boxes: dict[str, list[Box]] = {}
    colors: dict[Box, str] = {}
    for item in detect(image, rules=rules):
        boxes.setdefault(item.shape, []).append(item.box)
        colors[item.box] = item.color

    def lookup(name: str, wanted: Sequence[Box]) -> list[str]:
        del name
        return [colors[box] for box in wanted]

    return geneval.judge(metadata, boxes, lookup, rules=_GENEVAL_RULES)
