"""The judge against recorded verdicts of the authors' code, and properties that hold for any scene."""

import math

import golden_cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgrl.evaluation.geneval.judge import (
    Box,
    Rules,
    check_metadata,
    evaluate,
    judge,
    keep_boxes,
    partial_score,
    relative_position,
)

CASES = golden_cases.cases("geneval_judge")
FIXED = "partial_reward_appends_both_0_and_1"  # a wrong relation counts 0 once here


def scene(case):
    """Boxes, and a colour lookup by box."""
    boxes = {name: [Box(*row) for row in rows] for name, rows in case["detections"].items()}
    table = {
        (name, box): color
        for name, rows in boxes.items()
        for box, color in zip(rows, case["box_colors"].get(name, []), strict=False)
    }
    return boxes, lambda name, asked: [table[name, box] for box in asked]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_recorded_verdicts(case):
    boxes, colors = scene(case)
    rules = Rules(**case["options"])
    kept = keep_boxes(boxes, tag=case["tag"], rules=rules)
    single = {k: [[*box[:4], float(np.float32(box.score))] for box in v] for k, v in kept.items()}
    assert single == case["kept"]  # the recording rounds scores to float32
    correct, reason = evaluate(case["metadata"], kept, colors, rules=rules)
    assert correct == case["correct"] and bool(reason) == bool(case["reason"])
    score, strict, _ = partial_score(case["metadata"], kept, colors, rules=rules)
    assert strict == case["strict_correct"]
    if FIXED not in case.get("quirks", []):
        assert math.isclose(score, case["partial_reward"], rel_tol=1e-12, abs_tol=1e-15)


PAIR = {
    "tag": "position",
    "include": [
        {"class": "dog", "count": 1},
        {"class": "cat", "count": 1, "position": ["left of", 0]},
    ],
}
NO_COLORS = {}.__getitem__


def at(x, y, score=0.95, half=10):
    return Box(x - half, y - half, x + half, y + half, score)


def test_a_wrong_relation_counts_zero_once():
    # parts by hand: dog found 1, cat found 1, relation 0 -> 2/3 (the reference's slip gives 3/4)
    verdict = judge(PAIR, {"dog": [at(50, 50)], "cat": [at(150, 50)]}, NO_COLORS)
    assert verdict.score == 2 / 3 and not verdict.strict and not verdict.correct
    assert "cat left of target, found right of" in verdict.reason


def test_surplus_passes_officially_fails_strictly_and_is_clipped_on_request():
    metadata = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    four = {"dog": [at(50 * i, 50) for i in range(4)]}
    verdict = judge(metadata, four, NO_COLORS)
    assert verdict.correct and not verdict.strict and verdict.score == -2.0  # 1 - |4 - 1| / 1
    assert judge(metadata, four, NO_COLORS, rules=Rules(clip=True)).score == 0.0


def test_counting_uses_its_own_threshold():
    include = [{"class": "dog", "count": 2}]
    dogs = {"dog": [at(10, 10, 0.95), at(90, 10, 0.8)]}
    assert not judge({"tag": "counting", "include": include}, dogs, NO_COLORS).correct
    assert judge({"tag": "two", "include": include}, dogs, NO_COLORS).correct


def test_relations_by_hand():
    # sizes 20 + 20, so an offset within 4 pixels on an axis is no offset
    assert relative_position(at(0, 0), at(100, 0)) == {"left of"}
    assert relative_position(at(0, 100), at(0, 0)) == {"below"}
    assert relative_position(at(100, 0), at(0, 100)) == {"right of", "above"}
    assert relative_position(at(0, 0), at(3, -3)) == set()
    assert relative_position(at(7, 7), at(7, 7)) == set()


coordinate = st.integers(-200, 200).map(float)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@given(coordinate, coordinate, coordinate, coordinate, st.integers(1, 40), st.integers(1, 40))
def test_relations_mirror_and_ignore_translation(x, y, u, v, a, b):
    one, two = at(x, y, half=a), at(u, v, half=b)
    found = relative_position(one, two)
    assert {OPPOSITE[name] for name in found} == relative_position(two, one)
    moved = relative_position(at(x + 64, y - 32, half=a), at(u + 64, v - 32, half=b))
    assert moved == found


boxes = st.lists(
    st.tuples(coordinate, coordinate, st.integers(1, 999)), max_size=6, unique_by=lambda row: row[2]
)


@given(boxes, boxes, st.permutations(range(6)))
def test_verdict_ignores_detector_order_and_foreign_classes(dogs, cats, order):
    def found(rows):
        return [at(x, y, score / 1000) for x, y, score in rows]

    def shuffled(rows):
        return [rows[i] for i in order if i < len(rows)]

    verdict = judge(PAIR, {"dog": found(dogs), "cat": found(cats)}, NO_COLORS)
    again = judge(
        PAIR, {"cat": found(shuffled(cats)), "bird": [at(0, 0)], "dog": found(shuffled(dogs))}, NO_COLORS
    )
    assert again == verdict
    assert verdict.score <= 1.0 and (verdict.score == 1.0) == verdict.strict
    assert verdict.correct or not verdict.strict  # without `exclude`, strict implies correct


def test_suppression_is_off_by_default():
    twice = {"dog": [at(50, 50, 0.9), at(51, 50, 0.8)]}
    assert len(keep_boxes(twice, tag="x")["dog"]) == 2
    assert len(keep_boxes(twice, tag="x", rules=Rules(max_overlap=0.5))["dog"]) == 1


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({}, "needs a text `tag`"),
        ({"tag": "x", "include": []}, "non-empty list `include`"),
        ({"tag": "x", "include": [{"class": "dog", "count": 0}]}, r"include\[0\] needs"),
        ({"tag": "x", "include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "cannot have"),
        (
            {"tag": "x", "include": [*PAIR["include"][:1], {**PAIR["include"][1], "position": ["near", 0]}]},
            "one of",
        ),
        ({"tag": "x", "include": PAIR["include"], "exclude": [{"class": "dog"}]}, r"exclude\[0\] needs"),
    ],
)
def test_malformed_metadata_is_refused(metadata, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_metadata(metadata)
