"""What a misbehaving reward does to a run: it stops with a sentence, or its images are masked, as said."""

import itertools
import time

import pytest
from small_runs import PROMPTS, Data, RewardSpec, Rollout, brightness, rows_of

from imgrl.errors import RewardError
from imgrl.training.image_loop import Trainer


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


def test_a_round_without_a_single_score_stops_the_run(recipe):
    made = recipe(rewards={"mine": RewardSpec(use=raises, retries=0)}, scoring_failure_budget=1.0)
    with pytest.raises(RewardError, match="No image of the round has a score"):
        Trainer(made).train()


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
