"""GenEval's rules as a reward: by hand on boxes that are made up, and against `shapes` on the embedded world."""

import numpy as np
import pytest
import torch

from imgrl.errors import RewardError
from imgrl.evaluation.geneval.judge import Box
from imgrl.rewards import RewardSet
from imgrl.rewards.geneval import GenEval
from imgrl.rewards.shapes import Shapes
from imgrl.types import Prompt
from imgrl.world.detector import detect
from imgrl.world.styles import style_set

TWO_DOGS = {"tag": "counting", "include": [{"class": "dog", "count": 2}]}
RED_DOG = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
LEFT = {
    "tag": "position",
    "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
}
DOG, CAT = (0.0, 0.0, 4.0, 4.0, 0.95), (10.0, 0.0, 14.0, 4.0, 0.95)


def always(boxes):
    """A detector that finds the same in every picture."""
    return lambda pictures: [boxes for _ in pictures]


def scores(metadata, boxes, *, colors=None, **settings):
    reward = GenEval(detector=always(boxes), colors=colors, **settings)
    columns = {key: [metadata.get(key)] for key in ("tag", "include", "exclude")}
    return reward(torch.zeros(1, 3, 16, 16), ["a prompt"], **columns)


@pytest.mark.parametrize(
    ("metadata", "boxes", "settings", "expected"),
    [
        (TWO_DOGS, {"dog": [DOG]}, {}, 0.5),  # 1 - |1 - 2| / 2
        (TWO_DOGS, {"dog": [DOG, CAT]}, {}, 1.0),
        (TWO_DOGS, {"dog": [DOG, (10.0, 0.0, 14.0, 4.0, 0.5)]}, {}, 0.5),  # counting asks for confidence 0.9
        (TWO_DOGS, {"dog": [DOG, CAT, (20.0, 0.0, 24.0, 4.0, 0.95)]}, {}, 0.5),
        (TWO_DOGS, {"dog": [DOG, CAT, (20.0, 0.0, 24.0, 4.0, 0.95)]}, {"reward": "correct"}, 1.0),
        (TWO_DOGS, {"dog": [DOG, CAT, (20.0, 0.0, 24.0, 4.0, 0.95)]}, {"reward": "strict"}, 0.0),
        (TWO_DOGS, {"dog": [(x, 0.0, x + 4, 4.0, 0.95) for x in range(0, 60, 10)]}, {}, 0.0),  # cut at 0
        (LEFT, {"dog": [DOG], "cat": [CAT]}, {}, 1.0),
        (LEFT, {"dog": [CAT], "cat": [DOG]}, {}, 2 / 3),  # cat 1, dog 1, relation 0
        (RED_DOG, {"dog": [DOG]}, {"colors": lambda picture, name, boxes: ["red"]}, 1.0),
        (
            RED_DOG,
            {"dog": [DOG]},
            {"colors": lambda picture, name, boxes: ["blue"]},
            0.5,
        ),  # count 1, colour 0
        ({"tag": "text", "include": []}, {}, {}, None),
    ],
)
def test_scores_by_hand(metadata, boxes, settings, expected):
    (score,) = scores(metadata, boxes, **settings)
    assert score == (None if expected is None else pytest.approx(expected))


def world_boxes(pictures):
    found = []
    for picture in pictures:
        boxes = {}
        for item in detect(picture):
            boxes.setdefault(item.shape, []).append(tuple(item.box))
        found.append(boxes)
    return found


def world_colors(picture, name, boxes):
    known = {item.box: item.color for item in detect(picture)}
    return [known[Box(*box)] for box in boxes]


@pytest.mark.parametrize("kind", ["score", "strict", "correct"])
def test_with_the_worlds_detector_it_is_the_reward_shapes(kind):
    shown = style_set("plain", 24)
    images = torch.from_numpy(np.stack([pixels for _, pixels in shown])).permute(0, 3, 1, 2).float() / 255
    # Each picture is judged by the next one's prompt, too, which it mostly fails.
    prompts = [prompt for prompt, _ in shown] + [shown[row - 1][0] for row in range(24)]
    rules = {"threshold": 0.0, "counting_threshold": 0.0}
    args = {"detector": world_boxes, "colors": world_colors, "reward": kind, "rules": rules}
    rewards = RewardSet.from_specs(
        {"geneval": {"args": args}, "shapes": {"use": Shapes, "args": {"reward": kind}}}
    )
    values = rewards.score(torch.cat([images, images]), prompts).values
    assert torch.equal(values["geneval"].nan_to_num(-1), values["shapes"].nan_to_num(-1))
    assert len(values["geneval"].unique()) > 1


def test_a_detector_may_be_named(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Finder:\n"
        "    def __call__(self, pictures):\n"
        "        return [{'dog': [(0, 0, 4, 4, 0.9)] * int(picture.mean() > 128)} for picture in pictures]\n"
    )
    args = {"detector": f"{tmp_path}/mine.py:Finder"}
    rewards = RewardSet.from_specs({"geneval": {"args": args}})
    one = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    prompts = [Prompt(id=row, text="a dog", columns=one) for row in range(2)]
    assert rewards.check(prompts) == (0.0, 1.0)
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    assert rewards.score(images, prompts).total.tolist() == [0.0, 1.0]


def test_without_a_detector_it_says_what_one_is():
    with pytest.raises(
        RewardError, match="needs an object detector, and none comes with imgrl: give args.detector"
    ) as told:
        RewardSet.from_specs({"geneval": 1.0})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("metadata", "boxes", "settings", "sentence"),
    [
        (RED_DOG, {"dog": [DOG]}, {}, "asks for the colour of 'dog', .* give args.colors"),
        (RED_DOG, {"dog": [DOG]}, {"colors": lambda p, n, b: []}, "one colour a box, got 0 for 1"),
        (TWO_DOGS, {"dog": [DOG[:3]]}, {}, r"A box .* is \(x1, y1, x2, y2, confidence\), got 3 numbers"),
        (TWO_DOGS, [DOG], {}, "one mapping .* for each of 1 pictures, got 1 of list"),
    ],
)
def test_answers_that_cannot_be_are_refused(metadata, boxes, settings, sentence):
    with pytest.raises(RewardError, match=sentence):
        scores(metadata, boxes, **settings)
    with pytest.raises(RewardError, match="got 0 of nothing"):
        GenEval(detector=lambda pictures: [])(
            torch.zeros(1, 3, 8, 8), [""], tag=["counting"], include=[TWO_DOGS["include"]]
        )


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="reward must be one of score, strict, correct, got 'best'"):
        GenEval(detector=always({}), reward="best")  # pyright: ignore
    with pytest.raises(RewardError, match="there is no file"):
        GenEval(detector="nowhere.py:Detector")


def test_scores_are_not_kept_for_another_detector(tmp_path):
    file = tmp_path / "mine.py"

    def identity(text):
        file.write_text(text)
        rewards = RewardSet.from_specs({"g": {"use": "geneval", "args": {"detector": f"{file}:find"}}})
        return rewards.identity("g")

    one = "def find(pictures):\n    return [{} for _ in pictures]\n"
    assert identity(one) == identity(one) != identity(one + "\n")
    stated = (
        one + "find.identity = 'weights of MONTH'\n"
    )  # of files that a detector reads nothing else is known
    assert identity(stated.replace("MONTH", "May")) != identity(stated.replace("MONTH", "June"))
    given = RewardSet.from_specs({"g": {"use": "geneval", "args": {"detector": always({})}}})
    assert given.identity("g") is None  # nobody can tell what a function holds
