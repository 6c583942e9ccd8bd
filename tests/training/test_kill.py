"""kill -9 at random instants: whatever is left on disk continues to the same bits."""

import multiprocessing
import random

import pytest
from small_runs import Batch, assert_same_bits, last_tensors, rows_of, start, train

from imgrl.training.checkpoint import latest_checkpoint, read_checkpoint

PHASES = ("rollout", "update", "checkpoint")


@pytest.fixture(scope="module")
def lasting(sd3, embeddings):
    """Make the recipe of a run long enough for several deaths; its checkpoints take two updates a round."""
    from small_runs import small_recipe

    def make(folder):
        return small_recipe(
            sd3,
            folder,
            model_embedding_folder=str(embeddings),
            run_rounds=6,
            batch=Batch(groups=4, group_size=2, micro_groups=1, updates_per_round=2),
            evaluation_ema=0.9,
        )

    return make


@pytest.fixture(scope="module")
def whole(lasting, tmp_path_factory):
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(train, lasting(folder))
    process.join(120)
    assert process.exitcode == 0
    return folder


def live_and_die(recipe, folder, phase, nth, delay):
    """Start or resume the run and kill it ``delay`` seconds into the n-th ``phase``; False if it ended before."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    resume = latest_checkpoint(folder) is not None
    process = start(_train_telling, recipe, resume, sender)
    sender.close()
    seen = 0
    try:
        while seen < nth:
            seen += receiver.recv() == phase
    except EOFError:
        process.join(60)
        assert process.exitcode == 0
        return False
    process.join(delay)
    process.kill()
    process.join(60)
    return process.exitcode != 0


def _train_telling(recipe, resume, events):
    train(recipe, resume=resume, events=events)


def torment(lasting, folder, seed, kills):
    """Kill a run so many times, then let it end; returns how many deaths there were in which phase."""
    recipe, dice, deaths = lasting(folder), random.Random(seed), dict.fromkeys(PHASES, 0)
    for number in range(kills):
        phase = PHASES[number % len(PHASES)]
        # checkpoints and rollouts take some 20 ms each here, updates 100
        if not live_and_die(recipe, folder, phase, 1, dice.uniform(0, 0.1 if phase == "update" else 0.03)):
            return deaths
        deaths[phase] += 1
        newest = latest_checkpoint(folder)
        if newest is not None:
            read_checkpoint(newest)  # complete, by its own digests
    while live_and_die(recipe, folder, "never", 1, 0):
        pass
    return deaths


def check(folder, whole):
    assert_same_bits(last_tensors(folder), last_tensors(whole))
    assert rows_of(folder) == rows_of(whole)


def test_a_run_killed_six_times_ends_in_the_same_bits(lasting, whole, tmp_path):
    deaths = torment(lasting, tmp_path, seed=1, kills=6)
    assert sum(deaths.values()) == 6
    check(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_twenty_more_deaths(lasting, whole, tmp_path, seed):
    deaths = torment(lasting, tmp_path, seed=seed, kills=5)
    assert sum(deaths.values()) == 5
    check(tmp_path, whole)
