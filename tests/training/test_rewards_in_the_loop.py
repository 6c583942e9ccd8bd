"""What a misbehaving reward does to a run: it stops with a sentence, or its images are masked, as said."""

import dataclasses
import itertools
import time

import pytest
import torch
from small_runs import PROMPTS, Data, RewardSpec, Rollout, assert_same_bits, brightness, last_tensors, rows_of

from imgrl.errors import BudgetError, RewardError
from imgrl.training.image_loop import Trainer
from imgrl.training.reporting import Silent


def real(images):
    """Whether these are images of the model rather than the flat ones of the check before the run."""
    return float(images[0].std()) > 1e-4


def raises(images, prompts):
    if real(images):
        raise OSError("server gone\nand away")
    return brightness(images, prompts)


def hangs(images, prompts):
    if real(images):
        time.sleep(5)
    return brightness(images, prompts)


def short(images, prompts):
    return brightness(images, prompts)[: 1 if real(images) else None]


def nan(images, prompts):
    return [float("nan") if real(images) else 0.5] * len(prompts)


def above_one(images, prompts):
    """Within [0, 1] on the flat images of the check before training."""
    return [2.0 + mean if real(images) else mean for mean in brightness(images, prompts)]


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (
            raises,
            r"Reward 'mine' failed on 2 of 2 images, more than the budget of 25%; the last failure was OSError",
        ),
        (hangs, r"failed on 2 of 2 images.*TimeoutError: no answer within 0.1 s"),
        (short, r"Reward 'mine' was given 2 images and returned 1 scores"),
        (nan, r"Reward 'mine' returned nan for image 0, prompt 'a sun'; a finite number was expected"),
        (above_one, r"anchor.adaptive is 'raw', which needs combined rewards within \[0, 1\].*go from 2"),
    ],
)
def test_a_broken_reward_stops_the_run(recipe, reward, sentence):
    made = recipe(rewards={"mine": RewardSpec(use=reward, retries=0, timeout=0.1)})
    with pytest.raises(RewardError, match=sentence):
        Trainer(made).train()


@pytest.mark.parametrize("reward", [raises, hangs, short, nan])
def test_it_is_found_before_the_model_is_loaded_if_it_always_breaks(recipe, reward, monkeypatch):
    monkeypatch.setitem(globals(), "real", lambda images: True)
    made = recipe(
        model_path="nobody/nowhere", rewards={"mine": RewardSpec(use=reward, retries=0, timeout=0.1)}
    )
    with pytest.raises(RewardError, match="Reward 'mine'"):
        Trainer(made).train()


class Flaky:
    """Fails on every third image, with one call an image."""

    def __init__(self):
        self.number = itertools.count()

    def __call__(self, images, prompts):
        if real(images) and next(self.number) % 3 == 2:
            raise ConnectionError("busy")
        return brightness(images, prompts)


def test_failures_within_the_budget_are_masked_and_counted(recipe):
    made = recipe(
        rewards={"mine": RewardSpec(use=Flaky(), retries=0, batch=1)},
        scoring_failure_budget=0.5,
        batch_group_size=4,
    )
    assert Trainer(made).train().rounds == 2
    for row in (row for row in rows_of(made.run.dir) if "reward" in row):
        assert row["reward/failed"] == 4 and row["reward/masked"] == pytest.approx(4 / 12)
        assert 0.4 < row["reward"] < 0.6  # the mean over the others: no silent zero


def test_retries_mend_what_happens_once(recipe):
    made = recipe(rewards={"mine": RewardSpec(use=Flaky(), retries=1, backoff=0.0, batch=1)})
    Trainer(made).train()
    assert all(row["reward/failed"] == 0 for row in rows_of(made.run.dir) if "reward" in row)


class Dies:
    """Answers, fails in some calls on images of the model (counted from 0), and answers again."""

    def __init__(self, *failing):
        self.failing, self.calls = failing, itertools.count()

    def __call__(self, images, prompts):
        if real(images) and next(self.calls) in self.failing:
            raise ConnectionError("server gone")
        return brightness(images, prompts)


class Listening(Silent):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


def test_a_round_without_a_single_score_teaches_nothing_within_the_budget(recipe):
    # call 0 measures the base model, 1 to 3 are rounds, 4 is the last measurement
    made = recipe(
        rewards={"mine": RewardSpec(use=Dies(2), retries=0)}, scoring_failure_budget=1.0, run_rounds=3
    )
    told = Listening()
    assert Trainer(made, reporter=told).train().rounds == 3
    rows = [row for row in rows_of(made.run.dir) if "images" in row]
    assert [row["reward/masked"] for row in rows] == [0, 1, 0] and rows[1]["reward"] is None
    assert [row["optimizer_steps"] for row in rows] == [1, 1, 2]
    assert told.messages[:-1] == [
        "round 2: reward 'mine' failed on 6 of 6 images, which are masked (ConnectionError: server gone)",
        "round 2 taught nothing: no image got a score, as the rewards failed",
    ]


def test_a_lambda_trains(recipe):
    made = recipe(rewards={"bright": lambda images, prompts: images.mean((1, 2, 3))})
    summary = Trainer(made).train()
    assert summary.rounds == 2 and 0 < summary.after["heldout/bright@2"] < 1


@pytest.mark.parametrize("combine", ["sum", "gdpo"])
def test_a_reward_that_only_measures_takes_no_part_beside_several_that_train(recipe, combine):
    rewards = {
        "bright": RewardSpec(use=brightness, weight=0.5),
        "dark": RewardSpec(use=lambda images, prompts: 1 - images.mean((1, 2, 3)), weight=0.25),
        "watched": RewardSpec(use=lambda images, prompts: images.amax((1, 2, 3)), weight=0),
    }
    made = recipe(rewards=rewards, advantage_combine=combine)
    plain = recipe(rewards={k: rewards[k] for k in ("bright", "dark")}, advantage_combine=combine)
    plain = dataclasses.replace(plain, run=dataclasses.replace(plain.run, dir=f"{plain.run.dir}-plain"))
    Trainer(made).train()
    Trainer(plain).train()
    assert_same_bits(last_tensors(made.run.dir), last_tensors(plain.run.dir))
    assert all("reward/watched" in row for row in rows_of(made.run.dir) if "reward" in row)


def test_rewards_that_apply_to_nothing_stop_the_run(recipe):
    def nothing(images, prompts):
        return [None] * len(prompts) if real(images) else brightness(images, prompts)

    made = recipe(rewards={"mine": RewardSpec(use=nothing)}, scoring_failure_budget=1.0)
    with pytest.raises(
        RewardError, match="no reward with a weight applies to any of them; check the prompts"
    ):
        Trainer(made).train()


@pytest.mark.parametrize(("failing", "kept"), [(3, 2), (4, 3)])
def test_what_was_trained_before_a_reward_died_is_kept(recipe, tmp_path, failing, kept):
    # call 3 is the third round; call 4 a measurement after it
    settings = {"run_rounds": 4, "checkpoint_every": 0, "evaluation_every": 3}

    def made(folder, *fails):
        rewards = {"mine": RewardSpec(use=Dies(*fails), retries=0)}
        return recipe(rewards=rewards, run_dir=str(tmp_path / folder), **settings)

    dying = made("dying", failing)
    with pytest.raises(BudgetError, match="failed on . of . images, more than the budget of 25%"):
        Trainer(dying).train()
    assert [folder.name for folder in (tmp_path / "dying" / "checkpoints").iterdir()] == [f"step-{kept}"]
    Trainer(made("dying")).train(resume=True)
    whole = made("whole")
    Trainer(whole).train()
    first, second = last_tensors(whole.run.dir), last_tensors(dying.run.dir)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_reward_for_part_of_a_group_is_refused(recipe):
    def every_other(images, prompts):
        return [mean if row % 2 else None for row, mean in enumerate(brightness(images, prompts))]

    made = recipe(
        rewards={
            "all": RewardSpec(use=brightness, weight=0.5),
            "odd": RewardSpec(use=every_other, weight=0.5),
        }
    )
    with pytest.raises(RewardError, match="'odd' for all or none of group 0, got some; mask the rows"):
        Trainer(made).train()


def test_columns_reach_rewards_in_both_sets(recipe, tmp_path):
    seen = []

    def target(images, prompts, *, level):
        seen.append(tuple(level))
        return [1 - abs(mean - want) for mean, want in zip(brightness(images, prompts), level, strict=True)]

    train, heldout = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    train.write_text("".join(f'{{"prompt": "{text}", "level": 0.25}}\n' for text in PROMPTS[:3]))
    heldout.write_text('{"prompt": "a sun", "level": 0.75}\n')
    made = recipe(
        data=Data(prompts=str(train)), evaluation_prompts=str(heldout), rewards={"mine": target}, run_rounds=1
    )
    Trainer(made).train()
    assert (0.75,) in seen and (0.25,) * 6 in seen

    bare = recipe(data=Data(prompts=str(train)), rewards={"mine": target}, run_dir=f"{tmp_path}/bare")
    with pytest.raises(
        RewardError, match="evaluation.prompts do not suit the rewards: .*requires the column 'level'"
    ):
        Trainer(bare).train()


def test_guided_second_order_rollouts_run(recipe):
    made = recipe(run_rounds=1, rollout=Rollout(steps=3, solver="dpm2", guidance=3.0, batch=4))
    Trainer(made).train()
    assert 0 < rows_of(made.run.dir)[1]["reward"] < 1
