"""Several rewards together: hand-computed sums, probes, learning rewards."""

import math

import pytest
import torch

from imgrl.errors import RewardError
from imgrl.rewards import RewardSet, RewardSpec
from imgrl.types import Prompt

IMAGES = torch.full((3, 3, 8, 8), 0.5)
PROMPTS = [Prompt(id=i, text=f"p{i}", columns={"a": i} if i else {}) for i in range(3)]


def test_weighted_sum_over_the_rewards_that_apply():
    rewards = RewardSet.from_specs(
        {
            "one": {"use": lambda i, p: [1.0, 2.0, 3.0], "weight": 2.0},
            "two": {"use": lambda i, p, a: [None if x is None else 10.0 for x in a], "weight": -0.5},
            "seen": {"use": lambda i, p: [100.0] * 3, "weight": 0},
        }
    )
    scores = rewards.score(IMAGES, PROMPTS)
    assert scores.total.tolist() == [2.0, -1.0, 1.0]  # 2*1; 2*2 - .5*10; 2*3 - .5*10
    assert scores.mask.all() and set(scores.values) == {"one", "two", "seen"}
    assert scores.values["seen"].tolist() == [100.0] * 3


def test_a_recorded_reward_that_fails_masks_nothing():
    def broken(images, prompts):
        raise OSError("gone")

    specs = {"one": lambda i, p: [1.0] * 3, "seen": {"use": broken, "weight": 0, "retries": 0}}
    scores = RewardSet.from_specs(specs, failure_budget=1.0).score(IMAGES, PROMPTS)
    assert scores.mask.all() and scores.failures == {"one": 0, "seen": 3}


def test_check_calls_each_reward_once_with_the_data_sets_columns():
    calls = []

    def probe(images, prompts, a, **columns):
        calls.append((tuple(images.shape), prompts, a))
        return [0.0, 0.0]

    RewardSet.from_specs({"probe": probe}).check(PROMPTS, height=16, width=24)
    assert calls == [((2, 3, 16, 24), ["p1", "p1"], [1, 1])]  # p0 has no column a


def test_check_looks_for_a_prompt_that_the_reward_applies_to():
    prompts = [Prompt(id=i, text="sign" if i >= 90 else "cat") for i in range(100)]

    def signs_only(images, texts):
        return [None if text == "cat" else math.nan for text in texts]

    with pytest.raises(RewardError, match="returned nan for image 0, prompt 'sign'"):
        RewardSet.from_specs({"signs": signs_only}).check(prompts)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda i, p, b: [0.0, 0.0], "'r' requires the column 'b'"),
        (lambda i, p: [0.0], "was given 2 images and returned 1 scores"),
        (lambda i, p: 1 / 0, r"'r' failed on a probe of two flat images \(ZeroDivisionError"),
    ],
)
def test_check_finds_it_before_anything_expensive(function, sentence):
    with pytest.raises(RewardError, match=sentence):
        RewardSet.from_specs({"r": {"use": function, "retries": 0}}).check(PROMPTS)


def nothing(images, prompts):
    return [None] * len(prompts)


def test_a_reward_that_applies_to_no_prompt_of_a_training_set_is_refused():
    rewards = RewardSet.from_specs({"one": lambda i, p: [0.5] * len(p), "mute": nothing})
    with pytest.raises(
        RewardError, match="'mute' returned None for each of the 3 prompts, so it would train"
    ):
        rewards.check(PROMPTS, training=True)
    assert rewards.check(PROMPTS) == (0.5, 0.5)  # held-out prompts may be of another kind
    rewards.check(
        PROMPTS * 6, training=True
    )  # 18 prompts, of which 9 were asked about: it may apply to others
    recorded = {"one": lambda i, p: [0.5] * len(p), "mute": {"use": nothing, "weight": 0}}
    RewardSet.from_specs(recorded).check(PROMPTS, training=True)


@pytest.mark.parametrize(
    ("specs", "sentence"),
    [
        ({}, "At least one reward is needed"),
        ({"r": {"use": "shapes", "weigth": 1}}, "no setting 'weigth' .did you mean 'weight'"),
        ({"shapes": {"weight": math.inf}}, "weight must be finite"),
        ({"shapes": {"batch": 0}}, "batch must be at least 1"),
        ({"shapes": {"timeout": 0}}, "timeout must be positive"),
        ({"shapes": 0}, "Every reward has weight 0"),
        ({"r": True}, "must be a weight, a callable, a text or a table"),
    ],
)
def test_wrong_descriptions(specs, sentence):
    with pytest.raises(RewardError, match=sentence):
        RewardSet.from_specs(specs)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(3, 8, 8, 3), r"must be float \[n, 3, H, W\]"),
        (torch.zeros(3, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(2, 3, 8, 8), "got 2 images and 3 prompts"),
        (torch.full((3, 3, 8, 8), 255.0), "values from 255 to 255"),
        (torch.full((3, 3, 8, 8), math.nan), "values from nan to nan"),
    ],
)
def test_wrong_images(images, sentence):
    with pytest.raises(RewardError, match=sentence):
        RewardSet.from_specs({"r": lambda i, p: [0.0] * 3}).score(images, PROMPTS)


class Learner:
    """Rewards brightness by a factor that it learns."""

    def __init__(self, factor=1.0):
        self.factor = torch.tensor(factor)

    def __call__(self, images, prompts):
        return self.factor * images.mean((1, 2, 3))

    def learn(self, images, prompts, *, peers):
        self.factor = self.factor + peers.size
        return {"factor": float(self.factor)}

    def state_dict(self, peers):
        return {"factor": self.factor}

    def load_state_dict(self, state, peers):
        self.factor = state["factor"]


def test_learning_rewards_keep_their_state():
    specs = {"learner": RewardSpec(use=Learner, args={"factor": 2.0}), "fixed": lambda i, p: [0.0] * 3}
    rewards = RewardSet.from_specs(specs)
    assert rewards.learners.learn(IMAGES, PROMPTS) == {"learner": {"factor": 3.0}}
    assert not rewards.learners.waiting
    fresh = RewardSet.from_specs(specs)
    fresh.learners.load_state_dict(rewards.learners.state_dict())
    assert fresh.score(IMAGES, PROMPTS).total.tolist() == [1.5] * 3
    with pytest.raises(RewardError, match=r"learning rewards \[\], but this run has \['learner'\]"):
        fresh.learners.load_state_dict({})


def test_a_judge_of_heldout_images_is_not_asked_in_training():
    asked = []

    def judge(images, prompts):
        asked.append(len(images))
        return [7.0] * len(images)

    specs = {"one": lambda i, p: [1.0] * 3, "judge": {"use": judge, "weight": 0, "heldout_only": True}}
    rewards = RewardSet.from_specs(specs)
    assert set(rewards.score(IMAGES, PROMPTS, training=True).values) == {"one"} and asked == []
    assert rewards.score(IMAGES, PROMPTS).values["judge"].tolist() == [7.0] * 3
    with pytest.raises(RewardError, match="'judge': heldout_only needs weight 0, got 1.0"):
        RewardSet.from_specs({"judge": {"use": judge, "heldout_only": True}})
