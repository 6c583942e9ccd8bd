"""kill -9 at random instants: whatever is left on disk continues to the same bits."""

import multiprocessing
import random

import pytest
from small_runs import Batch, assert_same_bits, last_tensors, rows_of, start, train

from imgrl.training.checkpoint import latest_checkpoint, read_checkpoint

PHASES = ("rollout", "update", "checkpoint")
LIVES = (1, 1, 2, 2, 3, 3)
"""In the how-manieth such phase of a process it dies, in an order drawn anew for each run."""


@pytest.fixture(scope="module")
def lasting(sd3, embeddings):
    """Make the recipe of a run long enough for all deaths; its checkpoints take two updates a round."""
    from small_runs import small_recipe

    def make(folder, keep=2):
        return small_recipe(
            sd3,
            folder,
            model_embedding_folder=str(embeddings),
            run_rounds=sum(LIVES) + 1,
            batch=Batch(groups=4, group_size=2, micro_groups=1, updates_per_round=2),
            evaluation_ema=0.9,
            checkpoint_keep=keep,
        )

    return make


@pytest.fixture(scope="module")
def bundled(embeddings):
    """The same of the default recipe, on the bundled model and by its own reward, with fewer images."""
    from imgrl.config import resolve

    def make(folder, keep=2):
        settings = {
            "run.dir": folder,
            "run.rounds": sum(LIVES) + 1,
            "model.embedding_folder": embeddings,
            "batch": "{groups: 4, group_size: 2, micro_groups: 1, updates_per_round: 2}",
            "evaluation": "{prompts: 'world:heldout', every: 0, images_per_prompt: 1, limit: 2, steps: [2], ema: 0.9}",
            "checkpoint": f"{{every: 1, keep: {keep}}}",
        }
        return resolve("tiny-sd3/crd", [f"{key}={value}" for key, value in settings.items()])

    return make


@pytest.fixture(scope="module")
def whole(lasting, tmp_path_factory):
    """The run that nobody disturbs."""
    return _undisturbed(lasting, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole_bundled(bundled, tmp_path_factory):
    return _undisturbed(bundled, tmp_path_factory.mktemp("whole-bundled"))


def _undisturbed(lasting, folder):
    process = start(train, lasting(folder))
    process.join(300)
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


def torment(lasting, folder, seed, kills, keep=2):
    """Kill a run so many times, then let it end; returns how many deaths there were in which phase."""
    recipe, dice, deaths = lasting(folder, keep), random.Random(seed), dict.fromkeys(PHASES, 0)
    for number, nth in enumerate(dice.sample(LIVES, kills)):
        phase = PHASES[number % len(PHASES)]
        # checkpoints and rollouts take some 20 ms each here, updates 100
        if not live_and_die(recipe, folder, phase, nth, dice.uniform(0, 0.1 if phase == "update" else 0.03)):
            return deaths
        deaths[phase] += 1
        newest = latest_checkpoint(folder)
        if newest is not None:
            read_checkpoint(newest)  # complete, by its own digests
    while live_and_die(recipe, folder, "never", 1, 0):
        pass
    return deaths


def check(folder, whole, keep=2):
    assert_same_bits(last_tensors(folder), last_tensors(whole))
    assert rows_of(folder) == rows_of(whole)
    assert len(list((folder / "checkpoints").iterdir())) == keep  # and nothing half written


@pytest.mark.parametrize(("keep", "seed"), [(1, 2), (2, 6)])
def test_a_run_killed_three_times_ends_in_the_same_bits(lasting, whole, tmp_path, keep, seed):
    """Once in each phase. Where one checkpoint is kept, the only one is removed as soon as the next is there."""
    deaths = torment(lasting, tmp_path, seed=seed, kills=3, keep=keep)
    assert deaths == dict.fromkeys(PHASES, 1)
    check(tmp_path, whole, keep)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_the_bundled_model_dies_twenty_times(bundled, whole_bundled, tmp_path, seed):
    keep = 1 + seed % 2
    deaths = torment(bundled, tmp_path, seed=seed, kills=5, keep=keep)
    assert sum(deaths.values()) == 5
    check(tmp_path, whole_bundled, keep)
