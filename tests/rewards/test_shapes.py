"""The shape reward on pictures drawn here with Pillow, not by the package's renderer."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from imgrl.rewards import RewardSet
from imgrl.types import Prompt


def picture(*circles):
    """64-pixel white picture with filled circles (x, y, radius, colour), drawn at four times the size."""
    canvas = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(canvas)
    for x, y, radius, color in circles:
        draw.ellipse([4 * (x - radius), 4 * (y - radius), 4 * (x + radius), 4 * (y + radius)], fill=color)
    pixels = np.array(canvas.resize((64, 64), Image.Resampling.BOX))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


RED, BLUE = (220, 38, 38), (48, 88, 222)
ONE_RED = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}
TWO = {
    "tag": "counting",
    "include": [{"class": "circle", "count": 2}],
    "exclude": [{"class": "circle", "count": 3}],
}
SIGN = {"tag": "text", "include": [], "text": "CAT"}


@pytest.mark.parametrize("kind", ["score", "strict", "correct"])
def test_scores_by_hand(kind):
    one, other = picture((32, 32, 14, RED)), picture((32, 32, 14, BLUE))
    two = picture((18, 32, 9, RED), (46, 32, 9, RED))
    images = torch.stack([one, other, one, two, one])
    rows = [ONE_RED, ONE_RED, TWO, TWO, SIGN]
    prompts = [Prompt(id=i, text="", columns=row) for i, row in enumerate(rows)]
    rewards = RewardSet.from_specs({"shapes": {"args": {"reward": kind}}})
    rewards.check(prompts)
    values = rewards.score(images, prompts).values["shapes"].tolist()
    # wrong colour: (count 1 + colour 0) / 2; one of two: 1 - 1/2
    expected = [1.0, 0.5, 0.5, 1.0] if kind == "score" else [1.0, 0.0, 0.0, 1.0]
    assert values[:4] == expected
    assert np.isnan(values[4])  # a sign prompt has no clauses to judge


@pytest.mark.parametrize(("aspect", "expected"), [(1.0, 1.0), (1.42, 2 / 3), (1.65, 1 / 3), (2.2, 0.0)])
def test_graded_credit_falls_with_each_detector_that_refuses(aspect, expected):
    # A stretched disc is a circle in everything but its aspect, for which the detectors allow 1.8, 1.5 and 1.35.
    canvas = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(canvas).ellipse([128 - 40 * aspect, 88, 128 + 40 * aspect, 168], fill=RED)
    pixels = np.array(canvas.resize((64, 64), Image.Resampling.BOX))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    rewards = RewardSet.from_specs({"shapes": {"args": {"reward": "graded"}}})
    rewards.check([Prompt(id=0, text="", columns=ONE_RED)])
    values = rewards.score(image[None], [Prompt(id=0, text="", columns=ONE_RED)]).values["shapes"]
    assert values.item() == pytest.approx(expected)
