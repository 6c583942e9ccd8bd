"""The reward contract: every breach has its sentence, every failure is masked, nothing becomes a zero."""

import asyncio
import functools
import math
import time

import numpy as np
import pytest
import torch

from imgrl.errors import RewardError
from imgrl.rewards import RewardSet
from imgrl.types import Prompt

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = [Prompt(id=i, text=f"prompt {i}", columns={"tag": f"t{i}", "level": i / 4}) for i in range(4)]
QUICK = {"retries": 1, "backoff": 0.0}


def mean(images, prompts):
    return images.mean((1, 2, 3))


def score(function, *, budget=0.25, group=None, group_size=None, **settings):
    rewards = RewardSet.from_specs({"mine": {"use": function, **QUICK, **settings}}, failure_budget=budget)
    return rewards.score(IMAGES, PROMPTS, group=group, group_size=group_size)


class Sharp:
    """A reward that is an instance, or a class to construct."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, images, prompts, **columns):
        return [self.scale * level for level in columns["level"]]


async def slow_mean(images, prompts):
    await asyncio.sleep(0)
    return images.mean((1, 2, 3)).tolist()


LEVELS = [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("use", "args", "expected"),
    [
        (mean, {}, IMAGES.mean((1, 2, 3)).tolist()),
        (slow_mean, {}, IMAGES.mean((1, 2, 3)).tolist()),
        (Sharp(2.0), {}, [2 * x for x in LEVELS]),
        (Sharp, {"scale": 3.0}, [3 * x for x in LEVELS]),
        (lambda images, prompts, *, level, k: [k + x for x in level], {"k": 1.0}, [1 + x for x in LEVELS]),
        (
            functools.partial(lambda i, p, level, k: [k * x for x in level], k=4.0),
            {},
            [4 * x for x in LEVELS],
        ),
        (lambda i, p, level=None: np.array(level), {}, LEVELS),
        (lambda i, p, absent=0.5: [absent] * 4, {}, [0.5] * 4),
        (lambda i, p: [True, np.float32(1), torch.tensor(2), 3], {}, [1.0, 1.0, 2.0, 3.0]),
    ],
)
def test_accepted_forms(use, args, expected):
    scores = score(use, args=args)
    assert scores.values["mine"].tolist() == pytest.approx(expected)
    assert scores.mask.all() and scores.failures == {"mine": 0}


def test_images_and_prompts_arrive_as_promised():
    def look(images, prompts, **columns):
        assert isinstance(prompts, list) and prompts[2] == "prompt 2"
        assert columns == {"tag": ["t0", "t1", "t2", "t3"], "level": LEVELS}
        assert torch.equal(images, IMAGES) and not torch.is_grad_enabled()
        return [0.0] * 4

    assert score(look).mask.all()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ([1.0, 2.0, 3.0], "'mine' was given 4 images and returned 3 scores"),
        (torch.zeros(4, 1), r"must return 4 scores, got an array of shape \(4, 1\)"),
        ([0.0, math.nan, 0.0, 0.0], "returned nan for image 1, prompt 'prompt 1'; a finite number"),
        (torch.tensor([0.0, 0.0, math.inf, 0.0]), "returned inf for image 2, prompt 'prompt 2'"),
        ([0.0, 0.0, 0.0, "high"], r"returned 'high' \(str\) for image 3, prompt 'prompt 3'; a number"),
        ([0.0, 0.0, 0.0, 1j], "a number was expected"),
        ({"score": 1}, "must return a list, array or tensor of 4 scores, got dict"),
        (None, "got NoneType"),
        ("1234", "got str"),
    ],
)
def test_a_broken_contract_stops_at_once(answer, sentence):
    calls = []

    def wrong(images, prompts):
        calls.append(1)
        return answer

    with pytest.raises(RewardError, match=sentence):
        score(wrong, budget=1.0)
    assert len(calls) == 1  # a bug is not tried again


def test_changing_the_images_is_refused():
    def spoil(images, prompts):
        images.mul_(1.0)
        return [0.0] * 4

    with pytest.raises(RewardError, match="changed its images in place"):
        score(spoil)


def test_none_does_not_apply():
    scores = score(lambda i, p: [None, 1.0, None, 2.0])
    assert scores.mask.tolist() == [False, True, False, True]
    assert scores.values["mine"].isnan().tolist() == [True, False, True, False]
    assert scores.failures == {"mine": 0}
    with pytest.raises(RewardError, match="No reward with a weight applies to any of the 4 images"):
        score(lambda i, p: [None] * 4)


def test_a_raising_reward_masks_its_own_call():
    def fragile(images, prompts):
        if "prompt 2" in prompts:
            raise OSError("server gone")
        return [1.0] * len(prompts)

    scores = score(fragile, batch=1)
    assert scores.mask.tolist() == [True, True, False, True]
    assert scores.total[2].isnan() and scores.values["mine"][2].isnan()
    assert scores.failures == {"mine": 1}


def test_failures_beyond_the_budget_stop_the_run():
    def broken(images, prompts):
        raise OSError("server gone")

    sentence = (
        "'mine' failed on 4 of 4 images, more than the budget of 25%; the last failure was OSError: server"
    )
    with pytest.raises(RewardError, match=sentence):
        score(broken)
    scores = score(broken, budget=1.0)
    assert not scores.mask.any() and scores.failures == {"mine": 4}


def test_a_reward_that_recovers_is_not_masked():
    tries = []

    def flaky(images, prompts):
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise OSError("busy")
        return [1.0] * 4

    scores = score(flaky, retries=2, backoff=0.05)
    assert scores.mask.all() and scores.failures == {"mine": 0}
    waits = np.diff(tries)
    assert waits[0] >= 0.05 and waits[1] >= 0.1  # doubles


def test_a_hanging_reward_is_left_behind():
    start = time.monotonic()
    with pytest.raises(RewardError, match="no answer within 0.05 s"):
        score(lambda i, p: time.sleep(1.5), timeout=0.05)
    assert time.monotonic() - start < 1.0


def test_groupwise_rewards_see_whole_groups():
    seen = []

    class Rank:
        groupwise = True

        def __call__(self, images, prompts):
            seen.append(prompts)
            return [float(i) for i in range(len(prompts))]

    scores = score(Rank, group=torch.tensor([7, 3, 7, 3]), group_size=2)
    assert seen == [["prompt 1", "prompt 3"], ["prompt 0", "prompt 2"]]
    assert scores.total.tolist() == [0.0, 0.0, 1.0, 1.0]
    with pytest.raises(RewardError, match="needs the group number of each of 4 images"):
        score(Rank)
    with pytest.raises(RewardError, match="only 1 of a group's 2 images are here"):
        score(Rank, group=torch.tensor([0, 0, 1, 2]), group_size=2)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda images: [0.0], r"must take two positional parameters, images \(or texts\) and prompts"),
        (lambda i, p, colour: [0.0], "requires the column 'colour', but the prompts have level, tag"),
        (lambda tag, p, **columns: [0.0], "column 'tag' has the name of the reward's own parameter"),
    ],
)
def test_signatures_that_do_not_fit(function, sentence):
    with pytest.raises(RewardError, match=sentence):
        score(function)


def test_bound_arguments_win_over_columns():
    scores = score(lambda i, p, *, level, **columns: [level] * 4, args={"level": 9.0})
    assert scores.total.tolist() == [9.0] * 4
