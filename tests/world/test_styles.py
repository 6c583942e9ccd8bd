"""Styles: the same scenes in another manner, the same pictures every time."""

import numpy as np
import pytest

from imgrl.errors import DataError
from imgrl.rewards.references import load_references
from imgrl.world.detector import detect
from imgrl.world.prompts import is_held_out
from imgrl.world.styles import STYLES, style_picture, style_set

GROUND = {"outlined": (24, 26, 40), "pastel": (250, 244, 228), "hatched": (252, 252, 250)}
CIRCLE = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}


def picture(style, seed=0, metadata=CIRCLE):
    return style_picture(style, metadata, np.random.default_rng(seed)).astype(int)


@pytest.mark.parametrize("style", STYLES)
def test_a_set_is_made_of_training_prompts_and_is_always_the_same(style):
    made, again, other = (style_set(style, 12, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(made, again, strict=True))
    assert not all(np.array_equal(a, b) for (_, a), (_, b) in zip(made, other, strict=True))
    assert {prompt.columns["tag"] for prompt, _ in made} == {
        "single_object",
        "two_object",
        "counting",
        "colors",
        "position",
        "color_attr",
    }
    assert not any(is_held_out(dict(prompt.columns)) for prompt, _ in made)
    assert all(pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8 for _, pixels in made)


@pytest.mark.parametrize("style", GROUND)
def test_every_style_has_its_ground_and_covers_less_than_the_plain_shape(style):
    for seed in range(5):
        pixels = picture(style, seed)
        assert tuple(pixels[0, 0]) == GROUND[style]
        plain = picture("plain", seed)  # the same scene: objects are drawn before the ground's colour
        covered = (np.abs(pixels - pixels[0, 0]).sum(-1) > 30).mean()
        whole = (np.abs(plain - plain[0, 0]).sum(-1) > 30).mean()
        share = covered / whole
        assert {"outlined": share < 0.7, "pastel": share > 0.9, "hatched": 0.3 < share < 0.9}[style]


def test_the_colour_of_an_outline_is_that_of_the_prompt():
    pixels = picture("outlined")
    ys, xs = np.nonzero(np.abs(pixels - (220, 38, 38)).sum(-1) < 60)
    assert len(ys) > 20
    middle = pixels[(ys.min() + ys.max()) // 2, (xs.min() + xs.max()) // 2]
    assert tuple(middle) == GROUND["outlined"]  # hollow


def test_plain_pictures_are_what_the_prompt_says():
    found = detect(picture("plain").astype(np.uint8))
    assert [(item.shape, item.color) for item in found] == [("circle", "red")]


@pytest.mark.parametrize("style", STYLES)
def test_no_two_pictures_of_a_set_are_alike(style):
    made = style_set(style, 100)  # `imgrl style` takes as many and refuses the same picture twice
    assert len({pixels.tobytes() for _, pixels in made}) == len(made) == 100


def test_more_pictures_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"runs out of different pictures of the style 'pastel' after \d+"):
        style_set("pastel", 1000)
    with pytest.raises(DataError, match="world:pastel:1000: The embedded world runs out"):
        load_references("world:pastel:1000", height=64, width=64)


def test_unknown_styles_are_refused():
    with pytest.raises(ValueError, match="Unknown style 'cubist'"):
        style_set("cubist", 3)
