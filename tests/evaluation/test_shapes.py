"""ShapeEval's arithmetic by hand, and the way from a policy to its figures."""

import numpy as np
import pytest
import torch

from imgrl.errors import DataError
from imgrl.evaluation.geneval.judge import Verdict
from imgrl.evaluation.protocol import Protocol, generate
from imgrl.evaluation.shapes import evaluate_shapes, judgeable, score_images, summarise
from imgrl.types import Prompt
from imgrl.world.render import render
from imgrl.world.vocabulary import TASKS

SIGN = Prompt(id=0, text='a sign that says "CAT"', columns={"tag": "text", "include": [], "text": "CAT"})


def verdict(tag, correct, strict=False, score=0.0):
    return Verdict(score=score, strict=strict, correct=correct, tag=tag, reason="")


def rendered(prompts):
    pictures = [render(prompt.columns, np.random.default_rng(1)) for prompt in prompts]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def test_the_mean_is_over_tasks_not_images():
    """Counting: 1 of 1; colours: 1 of 4 -> (1 + 0.25) / 2, where the mean over images would be 2 / 5."""
    verdicts = [verdict("counting", True, strict=True, score=1.0)]
    verdicts += [verdict("colors", i == 0, score=0.5) for i in range(4)]
    assert summarise([*verdicts, None]) == {
        "shapes": 0.625,
        "shapes_strict": 0.5,
        "shapes_partial": 0.75,
        "shapes_tasks": 2.0,
        "shapes/counting": 1.0,
        "shapes/colors": 0.25,
    }


@pytest.mark.parametrize("verdicts", [[], [None], [verdict("text", True)]])
def test_nothing_to_average_is_refused(verdicts):
    with pytest.raises(ValueError, match="world:heldout"):
        summarise(verdicts)


def test_truth_is_correct_and_permuted_truth_is_not(prompts):
    images = rendered(prompts)
    full = summarise(score_images(images, prompts))
    assert full == {name: 1.0 for name in full if name != "shapes_tasks"} | {"shapes_tasks": 6.0}
    assert [name for name in full if "/" in name] == [f"shapes/{task}" for task in TASKS]
    # two_object: "a circle and a square"; shown instead: two circles
    assert summarise(score_images(images[[2]], [prompts[1]]))["shapes/two_object"] == 0.0


def test_what_shapeeval_can_judge(prompts):
    """Shapes, with or without signs among them; not signs alone, real things or plain texts."""
    real = Prompt(
        id=0,
        text="a photo of a toothbrush",
        columns={"tag": "single_object", "include": [{"class": "toothbrush", "count": 1}]},
    )
    assert judgeable(prompts) and judgeable([SIGN, prompts[0]])
    assert not judgeable([SIGN]) and not judgeable([real]) and not judgeable([prompts[0], real])
    assert not judgeable([Prompt(id=0, text="a cat")])


def test_signs_get_no_verdict(prompts):
    images = rendered([SIGN, prompts[0]])
    first, second = score_images(images, [SIGN, prompts[0]])
    assert first is None and second is not None and second.correct


def test_a_policy_is_scored_on_its_own_images(policy, prompts):
    protocol = Protocol(images_per_prompt=2, steps=1, batch=5)
    seen = []
    scores = evaluate_shapes(
        policy, prompts, protocol, progress=lambda done, total: seen.append((done, total))
    )
    images = generate(policy, prompts, protocol)
    assert scores == summarise(score_images(images, [p for p in prompts for _ in range(2)]))
    assert scores["shapes_tasks"] == 6 and scores["shapes"] <= 0.1  # the floor: random weights
    assert seen == [(5, 12), (10, 12), (12, 12)]


def test_prompts_that_cannot_be_judged_are_refused_before_sampling():
    nothing = None  # a policy would be asked for images only after the check
    with pytest.raises(DataError, match="'include'"):
        evaluate_shapes(nothing, [Prompt(id=0, text="a cat")], Protocol())
    with pytest.raises(DataError, match="ask for shapes"):
        evaluate_shapes(nothing, [SIGN], Protocol())
    with pytest.raises(ValueError, match="one prompt an image"):
        score_images(torch.zeros(2, 3, 64, 64), [SIGN])
