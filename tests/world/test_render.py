"""Rendered truth: what the pictures show, measured from their pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from imgrl.world.prompts import all_prompts, held_out_combinations
from imgrl.world.render import Placed, draw, render, render_sign, scene
from imgrl.world.score import judge_image
from imgrl.world.vocabulary import BACKGROUNDS, COLORS, RELATIONS, SHAPES, TASKS, TEXT_TASK, outline

METADATA = {task: [metadata for _, metadata in all_prompts(task)] for task in (*TASKS, TEXT_TASK)}
WORLD = [row for task in TASKS for row in METADATA[task]]


@pytest.mark.parametrize("tidy", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_rendered_truth_satisfies_its_metadata(task, tidy):
    rng = np.random.default_rng(0)
    rows = METADATA[task]
    for i in range(50):
        metadata = rows[i % len(rows)] if task != "color_attr" else rows[rng.integers(len(rows))]
        verdict = judge_image(render(metadata, rng, tidy=tidy), metadata)
        assert verdict.strict and verdict.correct and verdict.score == 1, (metadata["prompt"], verdict.reason)


@settings(max_examples=60, deadline=None)
@given(row=st.sampled_from(WORLD), seed=st.integers(0, 2**32 - 1), tidy=st.booleans())
def test_objects_neither_touch_nor_leave_the_picture(row, seed, tidy):
    """As many regions of object colour as objects asked for, corners included; the outermost pixels are background.

    A pixel is an object's when more than half of it is covered; the gap keeps two such pixels apart.
    """
    objects = scene(row, np.random.default_rng(seed), tidy=tidy)
    image = draw(objects, background="black").astype(float)
    to_ground = np.linalg.norm(image, axis=-1)
    to_object = np.min([np.linalg.norm(image - COLORS[item.color], axis=-1) for item in objects], axis=0)
    labels, count = ndimage.label(to_object < to_ground, structure=np.ones((3, 3)))
    assert count == sum(clause["count"] for clause in row["include"])
    frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (frame == 0).all()


@pytest.mark.parametrize("row", METADATA["position"][::5], ids=lambda row: row["prompt"])
def test_a_relation_holds_alone(row):
    """So that a picture of "a left of b" is no picture of "a above b" as well."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        image = render(row, rng)
        for relation in RELATIONS:
            moved = row["include"][1] | {"position": [relation, 0]}
            other = row | {"include": [row["include"][0], moved]}
            assert judge_image(image, other).correct == (relation == row["include"][1]["position"][0])


@settings(max_examples=60, deadline=None)
@given(row=st.sampled_from(WORLD), seed=st.integers(0, 2**32 - 1))
def test_tidy_objects_stand_on_latent_cells(row, seed):
    objects = scene(row, np.random.default_rng(seed), tidy=True)
    assert all(o.x % 8 == 0 and o.y % 8 == 0 for o in objects)
    assert {o.radius for o in objects} <= {10.0, 11.0, 14.0}


def test_tidy_signs_of_one_word_come_in_two_inks():
    row = METADATA[TEXT_TASK][0]
    assert len({render(row, np.random.default_rng(i), tidy=True).tobytes() for i in range(20)}) == 2


@settings(max_examples=60, deadline=None)
@given(row=st.sampled_from(WORLD), seed=st.integers(0, 2**32 - 1))
def test_free_colours_never_make_a_held_out_pair(row, seed):
    asked = {(c["color"], c["class"]) for c in row["include"] if "color" in c}
    drawn = {(o.color, o.shape) for o in scene(row, np.random.default_rng(seed))}
    assert not (drawn - asked) & held_out_combinations()["color_shape"]


@given(row=st.sampled_from(WORLD + METADATA[TEXT_TASK]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_seed_decides_the_picture(row, seed):
    first, second = (render(row, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, second)


def test_other_seeds_make_other_pictures():
    row = METADATA["single_object"][0]
    assert len({render(row, np.random.default_rng(i)).tobytes() for i in range(20)}) == 20


@pytest.mark.parametrize("shape", SHAPES)
def test_area_and_colour(shape):
    """Pixels covered against the polygon's area (shoelace) or the circles'."""
    radius = 20.0
    image = draw([Placed(shape=shape, color="red", x=32, y=32, radius=radius)], background="black")
    covered = image[..., 0].sum() / COLORS["red"][0]
    points = np.array(outline(shape) or [])
    if len(points):
        x, y = points.T
        area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    else:
        area = np.pi * (1 - 0.55**2 if shape == "ring" else 1)
    assert covered == pytest.approx(area * radius**2, rel=0.04)  # Pillow paints the rim of a polygon as well
    assert tuple(image[0, 0]) == BACKGROUNDS["black"]
    assert (np.abs(image.astype(int) - COLORS["red"]).sum(-1) == 0).sum() > 0.6 * covered


@pytest.mark.parametrize("word", ["HID", "FLAG", "ZEBRA", "90210", "MAMMA"])
def test_letters_are_ten_pixels_high_and_inside(word):
    """The OCR reward is reliable from 8 pixels on; capitals are measured from the pixels."""
    for seed in range(4):
        image = render_sign(word, np.random.default_rng(seed)).astype(int)
        ink = np.abs(image - image[0, 0]).max(-1) > 127
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        assert rows[-1] - rows[0] + 1 >= 10
        assert columns[0] > 0 and columns[-1] < 63 and rows[0] > 0 and rows[-1] < 63
        assert {tuple(image[0, 0])} <= {(0, 0, 0), (255, 255, 255)}
