"""Scoring one part of a round while the next is sampled: the same scores, sooner."""

import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from small_runs import PROMPTS, RewardSpec, assert_same_bits, brightness, last_tensors, rows_of, sometimes
from test_rewards_in_the_loop import Flaky, real

from imgrl.errors import ConfigError, RewardError
from imgrl.training.checks import check_recipe
from imgrl.training.image_loop import Trainer
from imgrl.training.scoring import Judge
from imgrl.types import Prompt, Scores


def brighter_than_its_group(images, prompts):
    means = images.mean((1, 2, 3))
    assert len(set(prompts)) == 1
    return (0.5 + means - means.mean()).tolist()


brighter_than_its_group.groupwise = True


class Counted:
    """A reward that notes how many images each call has."""

    def __init__(self, reward, calls):
        self.reward, self.calls = reward, calls
        self.groupwise = getattr(reward, "groupwise", False)

    def __call__(self, images, prompts):
        self.calls.append(len(images))
        return self.reward(images, prompts)


@pytest.mark.parametrize("reward", [brightness, sometimes, brighter_than_its_group])
def test_training_is_the_same_bit_for_bit(recipe, reward, tmp_path):
    made = recipe(rewards={"mine": RewardSpec(use=reward, retries=0)}, rollout_batch=2)
    beside = replace(
        made,
        run=replace(made.run, dir=str(tmp_path / "beside")),
        scoring=replace(made.scoring, overlap=True),
    )
    calls: list[list[int]] = [[], []]
    for number, each in enumerate((made, beside)):
        counted = Counted(reward, calls[number])
        Trainer(replace(each, rewards={"mine": RewardSpec(use=counted, retries=0)})).train()
    if reward is not brighter_than_its_group:
        assert [n for n in calls[0] if n != 2] == [6, 6]  # two rounds; twos are the check and held-out images
        assert calls[1] == [2] * (len(calls[0]) - 2 + 6)
    assert_same_bits(last_tensors(made.run.dir), last_tensors(beside.run.dir))
    assert rows_of(made.run.dir) == rows_of(beside.run.dir)


def test_failures_of_all_parts_are_counted(recipe):
    made = recipe(
        rewards={"mine": RewardSpec(use=Flaky(), retries=0, batch=1)},
        scoring_failure_budget=0.5,
        batch_group_size=4,
        rollout_batch=4,
        scoring_overlap=True,
    )
    Trainer(made).train()
    rows = [row for row in rows_of(made.run.dir) if "reward" in row]
    assert [row["reward/failed"] for row in rows] == [4, 4]


def breaks_in_training(images, prompts):
    if real(images) and prompts[0] in PROMPTS:
        raise OSError("server gone")
    return brightness(images, prompts)


def test_a_broken_reward_stops_the_run_and_counts_all_its_images(recipe):
    made = recipe(
        rewards={"mine": RewardSpec(use=breaks_in_training, retries=0)}, rollout_batch=2, scoring_overlap=True
    )
    with pytest.raises(RewardError, match="'mine' failed on 6 of 6 images, .*OSError: server gone"):
        Trainer(made).train()


def images_of(value: float) -> tuple[torch.Tensor, list[Prompt], torch.Tensor]:
    return (
        torch.full((2, 3, 4, 4), value),
        [Prompt(id=0, text="a cat")] * 2,
        torch.zeros(2, dtype=torch.int64),
    )


def whole(*values: float) -> tuple[torch.Tensor, list[Prompt], torch.Tensor]:
    images, prompts, group = zip(*map(images_of, values), strict=True)
    return torch.cat(images), [prompt for part in prompts for prompt in part], torch.cat(group)


def scored(images: torch.Tensor) -> Scores:
    values = images.mean((1, 2, 3))
    return Scores(values={"mine": values}, total=values, mask=values > 0, failures={"mine": 1})


def test_parts_are_handed_over_without_waiting_and_come_back_in_order():
    gate, threads = threading.Event(), []

    def score(images, prompts, group):
        assert gate.wait(30)
        threads.append(threading.current_thread())
        return scored(images)

    with Judge(score, beside=True) as judge:
        for value in (0.25, 0.0, 0.75):
            judge.take(*images_of(value))  # would never return if it scored here
        gate.set()
        scores = judge.scores(*whole(0.25, 0.0, 0.75))
    assert scores.total.tolist() == [0.25, 0.25, 0.0, 0.0, 0.75, 0.75]
    assert scores.values["mine"].tolist() == scores.total.tolist()
    assert scores.mask.tolist() == [True, True, False, False, True, True]
    assert scores.failures == {"mine": 3}
    assert threading.main_thread() not in threads


def test_all_at_once_is_one_call():
    sizes = []

    def score(images, prompts, group):
        sizes.append((len(images), len(prompts), len(group)))
        return scored(images)

    with Judge(score) as judge:
        judge.take(*images_of(0.25))
        judge.take(*images_of(0.5))
        assert not sizes
        assert judge.scores(*whole(0.25, 0.5)).total.tolist() == [0.25, 0.25, 0.5, 0.5]
    assert sizes == [(4, 4, 4)]


def test_an_error_while_scoring_is_raised_when_scores_are_wanted():
    def score(images, prompts, group):
        raise RewardError(f"broken at {float(images[0, 0, 0, 0])}")

    with pytest.raises(RewardError, match=r"broken at 0\.25"), Judge(score, beside=True) as judge:
        judge.take(*images_of(0.25))
        judge.take(*images_of(0.5))
        judge.scores(*whole(0.25, 0.5))


HANGS = """
import threading, torch
from imgrl.training.scoring import Judge

with Judge(lambda *part: threading.Event().wait(), beside=True) as judge:
    judge.take(torch.zeros(1, 3, 4, 4), [], torch.zeros(1))
    raise MemoryError("no room")
"""


def test_a_reward_that_hangs_does_not_keep_the_process():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "MemoryError: no room" in done.stderr


def test_an_error_while_sampling_does_not_wait_for_a_reward_that_hangs():
    gate = threading.Event()

    def score(images, prompts, group):
        gate.wait(60)
        return scored(images)

    with pytest.raises(MemoryError), Judge(score, beside=True) as judge:
        judge.take(*images_of(0.25))
        raise MemoryError
    assert not gate.is_set()
    gate.set()


@pytest.mark.parametrize("batch", [None, 6])
def test_nothing_to_overlap_is_refused(recipe, batch):
    made = recipe(rollout_batch=batch, scoring_overlap=True)
    with pytest.raises(
        ConfigError, match="samples its 6 images of a round at once: give a rollout.batch below 6"
    ):
        Trainer(made).train()


def test_a_group_split_over_parts_is_refused(recipe):
    made = recipe(
        rewards={"mine": RewardSpec(use=brighter_than_its_group)}, rollout_batch=3, scoring_overlap=True
    )
    sentence = r"'mine' compares the images of a group.*multiple of batch.group_size \(2\)"
    with pytest.raises(ConfigError, match=sentence):
        Trainer(made).train()


def test_a_group_split_over_processes_is_refused_before_anything_is_loaded(recipe):
    made = recipe(
        rewards={"mine": RewardSpec(use=brighter_than_its_group)}, batch_groups=2, batch_group_size=2
    )
    sentence = (
        r"'mine' compares .* each of 2 processes has 1 images: make batch.micro_groups a multiple of 2\."
    )
    with pytest.raises(ConfigError, match=sentence):
        check_recipe(made, processes=2)
    check_recipe(recipe(rewards=made.rewards, batch_groups=2, batch_micro_groups=2), processes=2)
