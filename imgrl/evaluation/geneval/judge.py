"""The rules of GenEval on detected boxes: official verdict, strict verdict, partial reward.

Pure functions; detector and colour classifier are the caller's. Sources: Ghosh et al., GenEval (NeurIPS 2023)
for the official rule; the training reward of Flow-GRPO and DiffusionNFT for the strict and partial ones.

One slip of that training reward is fixed here: a wrong relation counts 0 once (there: 0 and then 1 as well,
so that "both objects found, wrong relation" earned 3/4 instead of 2/3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = [
    "RELATIONS",
    "Box",
    "ColorLookup",
    "Rules",
    "Verdict",
    "check_metadata",
    "evaluate",
    "judge",
    "keep_boxes",
    "partial_score",
    "relative_position",
]

RELATIONS = ("left of", "right of", "above", "below")


class Box(NamedTuple):
    """A detected object: corners in pixels (y grows downwards) and the detector's confidence."""

    x1: float
    y1: float
    x2: float
    y2: float
    score: float = 1.0


ColorLookup = Callable[[str, Sequence[Box]], Sequence[str]]
"""``colors(class_name, boxes)`` names one colour a box; called only where a clause asks for a colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The thresholds of the benchmark; the defaults are the published protocol."""

    threshold: float = 0.3
    """A box counts when its score is greater than this (strictly)."""
    counting_threshold: float = 0.9
    """The same, where the tag is ``counting``."""
    max_objects: int = 16
    """At most this many boxes of a class are kept, best first."""
    max_overlap: float = 1.0
    """Boxes overlapping a better one by this IoU or more are dropped; 1.0 switches suppression off."""
    position_threshold: float = 0.1
    """Share of the two objects' summed sizes by which centres must differ before a relation holds."""
    clip: bool = False
    """Clip each part of the partial score at 0, for a reward within [0, 1]; without it a surplus of objects
    can cost more than is at stake."""


class Verdict(NamedTuple):
    """What the judge says about one image."""

    score: float
    """Partial credit, at most 1; in [0, 1] where ``Rules.clip``."""
    strict: bool
    """Every clause holds with the exact count (extra objects fail)."""
    correct: bool
    """The official verdict: extra objects are fine except where ``exclude`` names them."""
    tag: str
    """The task of the prompt, such as ``counting``."""
    reason: str
    """Why the official verdict is negative, one line a cause; empty if correct."""


def judge(
    metadata: Mapping[str, Any],
    detections: Mapping[str, Sequence[Box]],
    colors: ColorLookup,
    *,
    rules: Rules = Rules(),
) -> Verdict:
    """Judge one image by its raw detections.

    Args:
        metadata: GenEval row: ``tag``, ``include`` (clauses with ``class``, ``count`` and optionally
            ``color`` and ``position = [relation, index of an earlier clause]``), optionally ``exclude``.
        detections: boxes of each class in the detector's order, unfiltered.
        colors: names the colours of boxes of a class.
        rules: thresholds.

    Raises:
        ValueError: if the metadata is malformed.
    """
    check_metadata(metadata)
    kept = keep_boxes(detections, tag=metadata["tag"], rules=rules)
    correct, reason = evaluate(metadata, kept, colors, rules=rules)
    score, strict, _ = partial_score(metadata, kept, colors, rules=rules)
    return Verdict(score=score, strict=strict, correct=correct, tag=metadata["tag"], reason=reason)


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Refuse metadata that is not a GenEval row.

    Raises:
        ValueError: naming the missing or wrong field.
    """
    include = metadata.get("include")
    if not isinstance(metadata.get("tag"), str) or not isinstance(include, Sequence) or not include:
        raise ValueError(
            f"GenEval metadata needs a text `tag` and a non-empty list `include`, got {dict(metadata)!r}."
        )
    for index, clause in enumerate(include):
        _check_clause(clause, f"include[{index}]")
        relation, target = clause.get("position") or (RELATIONS[0], 0)
        if relation not in RELATIONS or not 0 <= target < max(index, 1):
            raise ValueError(
                f"include[{index}].position must be [one of {', '.join(RELATIONS)}; index of an earlier "
                f"clause], got {clause['position']!r}."
            )
        if clause.get("position") and index == 0:
            raise ValueError("include[0] cannot have a `position`: its target must be an earlier clause.")
    for index, clause in enumerate(metadata.get("exclude") or ()):
        _check_clause(clause, f"exclude[{index}]")


def _check_clause(clause: Any, where: str) -> None:
    valid = isinstance(clause, Mapping) and isinstance(clause.get("class"), str)
    if not valid or not isinstance(clause.get("count"), int) or clause["count"] < 1:
        raise ValueError(f"{where} needs a text `class` and a `count` of at least 1, got {clause!r}.")


def keep_boxes(
    detections: Mapping[str, Sequence[Box]], *, tag: str, rules: Rules = Rules()
) -> dict[str, list[Box]]:
    """Return each class's boxes over the threshold, best first, without the classes that keep none.

    Equal scores keep the reference's order: the later detection first.
    """
    threshold = rules.counting_threshold if tag == "counting" else rules.threshold
    kept: dict[str, list[Box]] = {}
    for name, boxes in detections.items():
        best_first = sorted(reversed(boxes), key=lambda box: -box.score)
        passing = [box for box in best_first if box.score > threshold][: rules.max_objects]
        if rules.max_overlap != 1:
            passing = _suppress(passing, rules.max_overlap)
        if passing:
            kept[name] = passing
    return kept


def _suppress(boxes: Sequence[Box], max_overlap: float) -> list[Box]:
    kept: list[Box] = []
    for box in boxes:
        if all(_overlap(box, better) < max_overlap for better in kept):
            kept.append(box)
    return kept


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union with both border pixels counted."""
    width = max(min(a.x2, b.x2) - max(a.x1, b.x1) + 1, 0)
    height = max(min(a.y2, b.y2) - max(a.y1, b.y1) + 1, 0)
    shared = width * height
    union = _area(a) + _area(b) - shared
    return shared / union if union else 0.0


def _area(box: Box) -> float:
    return max(box.x2 - box.x1 + 1, 0) * max(box.y2 - box.y1 + 1, 0)


def relative_position(a: Box, b: Box, *, threshold: float = 0.1) -> frozenset[str]:
    """Return the relations of ``a`` to ``b``: none, one, or two of ``RELATIONS``.

    The offset of the centres is shrunk towards 0 by ``threshold * (size a + size b)`` on each axis and
    divided by the length of the unshrunk offset; a component beyond one half names a relation.
    """
    offset_x = (a.x1 + a.x2 - b.x1 - b.x2) / 2
    offset_y = (a.y1 + a.y2 - b.y1 - b.y2) / 2
    x = _shrink(offset_x, threshold * (abs(a.x2 - a.x1) + abs(b.x2 - b.x1)))
    y = _shrink(offset_y, threshold * (abs(a.y2 - a.y1) + abs(b.y2 - b.y1)))
    if abs(x) < 1e-3 and abs(y) < 1e-3:
        return frozenset()
    length = math.hypot(offset_x, offset_y)
    holds = (x / length < -0.5, x / length > 0.5, y / length < -0.5, y / length > 0.5)
    return frozenset(relation for relation, true in zip(RELATIONS, holds, strict=True) if true)


def _shrink(value: float, by: float) -> float:
    return math.copysign(max(abs(value) - by, 0.0), value)


def evaluate(
    metadata: Mapping[str, Any],
    kept: Mapping[str, Sequence[Box]],
    colors: ColorLookup,
    *,
    rules: Rules = Rules(),
) -> tuple[bool, str]:
    """Return the official verdict on kept boxes, and the causes of a negative one, a line each."""
    reasons: list[str] = []
    matched: list[Sequence[Box] | None] = []  # the boxes of each clause, None where it failed
    for clause in metadata["include"]:
        name, count = clause["class"], clause["count"]
        boxes = list(kept.get(name, ()))[:count]
        if len(boxes) < count:
            reason = f"expected {name}>={count}, found {len(boxes)}"
        else:
            reason = _wrong_color(clause, boxes, colors, exact=False)
        if not reason and clause.get("position"):
            reason = _wrong_position(clause, boxes, matched, rules.position_threshold)
        matched.append(None if reason else boxes)
        reasons += [reason] if reason else []
    for clause in metadata.get("exclude") or ():
        found = len(kept.get(clause["class"], ()))
        if found >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {found}")
    return not reasons, "\n".join(reasons)


def partial_score(
    metadata: Mapping[str, Any],
    kept: Mapping[str, Sequence[Box]],
    colors: ColorLookup,
    *,
    rules: Rules = Rules(),
) -> tuple[float, bool, str]:
    """Return partial credit, the strict verdict, and the causes of a negative one.

    Each clause gives ``1 - |found - count| / count``; one 0 more where the count is wrong and a colour or
    relation was asked for; otherwise one part for the colour and, where that is right, one for the relation.
    The score is the mean of the parts. ``exclude`` plays no role: the exact count covers it.
    """
    parts: list[float] = []
    reasons: list[str] = []
    matched: list[Sequence[Box] | None] = []
    for clause in metadata["include"]:
        name, count = clause["class"], clause["count"]
        boxes = list(kept.get(name, ()))
        parts.append(1 - abs(len(boxes) - count) / count)
        reason = "" if len(boxes) == count else f"expected {name}=={count}, found {len(boxes)}"
        if reason and (clause.get("color") or clause.get("position")):
            parts.append(0.0)
        if not reason and clause.get("color"):
            right = sum(color == clause["color"] for color in colors(name, boxes))
            parts.append(1 - abs(count - right) / count)
            reason = _wrong_color(clause, boxes, colors, exact=True)
        if not reason and clause.get("position"):
            reason = _wrong_position(clause, boxes, matched, rules.position_threshold)
            parts.append(0.0 if reason else 1.0)
        matched.append(None if reason else boxes)
        reasons += [reason] if reason else []
    if rules.clip:
        parts = [max(part, 0.0) for part in parts]
    return sum(parts) / len(parts), not reasons, "\n".join(reasons)


def _wrong_color(clause: Mapping[str, Any], boxes: Sequence[Box], colors: ColorLookup, *, exact: bool) -> str:
    wanted = clause.get("color")
    if not wanted:
        return ""
    named = list(colors(clause["class"], boxes))
    right, count = named.count(wanted), clause["count"]
    if right == count or (right > count and not exact):
        return ""
    others = ", ".join(sorted({color for color in named if color != wanted})) or "no others"
    sign = "==" if exact else ">="
    return f"expected {wanted} {clause['class']}{sign}{count}, found {right} {wanted} and {others}"


def _wrong_position(
    clause: Mapping[str, Any], boxes: Sequence[Box], matched: Sequence[Sequence[Box] | None], threshold: float
) -> str:
    relation, index = clause["position"]
    targets = matched[index]
    if targets is None:
        return f"no target for {clause['class']} to be {relation}"
    for box in boxes:
        for target in targets:
            found = relative_position(box, target, threshold=threshold)
            if relation not in found:
                seen = " and ".join(sorted(found)) or "neither"
                return f"expected {clause['class']} {relation} target, found {seen}"
    return ""
