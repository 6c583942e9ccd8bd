"""Two processes on gloo against one: the same round, whoever makes which image."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import (
    CHEAP,
    GROUPS,
    SIZE,
    Batch,
    LoraSpec,
    RewardSpec,
    flat_for_squares,
    last_tensors,
    make_rollout,
    rows_of,
    scramble,
    small_recipe,
    sometimes,
    start,
    take,
    train,
)
from two_processes import free_port, two

from imgrl.anchor import VelocityAnchor
from imgrl.flow import StochasticSampler
from imgrl.objectives.image import AWM, DGPO, GRPO, NFT
from imgrl.recipe import dump
from imgrl.training.rollout import _window

TOLERANCE = {"rtol": 0.0, "atol": 2e-5}
"""Of weights after two rounds at learning rate 1e-4: sums over images in another order, float32. AdamW divides
a gradient by its own size, so rounding in a gradient close to 0 may move a weight by part of a step."""

# ----------------------------------------------------------------------- runs

WHOLE = Batch(groups=4, group_size=3, micro_groups=2)
SPLIT = Batch(groups=3, group_size=2, micro_groups=1)  # each process holds one image of every pair
UNEVEN = Batch(groups=4, group_size=3, micro_groups=4, updates_per_round=1)
ODD = Batch(groups=2, group_size=6, micro_groups=1)  # 3 of each 6

AWM_CHEAP = AWM(times=CHEAP.times, old=CHEAP.old)
WINDOWED = GRPO(
    sampler=StochasticSampler(window=1, reach=1.0),
    anchor=VelocityAnchor(weight=0.1, guidance=1.0, adaptive="batch_mean_raw"),
)

CASES = {
    "whole groups": (WHOLE, "bright", CHEAP),
    "split groups": (SPLIT, "bright", CHEAP),
    "one micro-batch": (UNEVEN, "bright", CHEAP),
    "a group without signal": (SPLIT, "flat", CHEAP),
    "masked images": (ODD, "some", CHEAP),
    "matching": (SPLIT, "bright", AWM_CHEAP),
    "random steps": (SPLIT, "bright", WINDOWED),
    "random steps that one has none of": (WHOLE, "flat", WINDOWED),
}
REWARDS = {
    "bright": None,
    "flat": {"flat": RewardSpec(use=flat_for_squares, retries=0)},
    "some": {"some": RewardSpec(use=sometimes, retries=0)},
}


def made(recipe, folder, batch, reward, **changes):
    rewards = {} if REWARDS[reward] is None else {"rewards": REWARDS[reward]}
    return recipe(run_dir=str(folder), batch=batch, optimizer_lr=1e-4, **rewards, **changes)


def compare(one, other):
    first, second = last_tensors(one), last_tensors(other)
    assert first.keys() == second.keys()
    moved = 0.0
    for key, value in first.items():
        if key.startswith("weights:"):
            torch.testing.assert_close(value, second[key], **TOLERANCE)
            moved = max(moved, float(value.abs().max())) if "lora_B" in key else moved
    assert moved > 5 * TOLERANCE["atol"]  # B starts at 0: agreement of standing still would prove nothing
    for row, twin in zip(rows_of(one), rows_of(other), strict=True):
        assert row.keys() == twin.keys()
        for name, value in row.items():
            assert twin[name] == pytest.approx(value, rel=2e-3, abs=2e-5, nan_ok=True), name


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(recipe, tmp_path, case):
    batch, reward, objective = CASES[case]
    one, other = (made(recipe, tmp_path / n, batch, reward, objective=objective) for n in ("one", "two"))
    if objective is WINDOWED:  # one that forgot its draw would begin at 0 everywhere
        assert all(_window(one, round) > 0 for round in range(one.run.rounds))
    process = start(train, one)
    process.join(120)
    assert process.exitcode == 0
    two(train, other)
    compare(tmp_path / "one", tmp_path / "two")
    rows = [row for row in rows_of(tmp_path / "two") if "reward" in row]
    if reward == "flat":
        assert any(row["groups/zero_variance"] > 0 for row in rows)
    if reward == "some":
        assert all(0 < row["reward/masked"] < 1 for row in rows)


# ------------------------------------------------------------------ gradients

FLAT = [0.1, 0.4, 0.9, 0.5, 0.5, 0.5, 0.3, 0.2, 0.8, 0.7, 0.1, 0.6]  # group 1 has no spread
LEASH = {"anchor": VelocityAnchor(weight=0.3, guidance=2.0, adaptive="batch_mean_raw")}


OBJECTIVES = {
    "crd": CHEAP,
    "crd-softmax": dataclasses.replace(CHEAP, temperature=0.5, **LEASH),
    "nft": NFT(times=CHEAP.times, **LEASH),
    "dgpo": DGPO(times=CHEAP.times, **LEASH),
    "awm": AWM(times=CHEAP.times, **LEASH),
}
MASKED = {"none": [], "a group": [6, 7, 8], "parts": [0, 1, 9, 10], "part and group": [3, 9, 10, 11]}


def write_gradients(model: Path, cache: Path, out: Path) -> None:
    """The summed gradients of made-up rounds, from this process's share of them."""
    from accelerate import Accelerator

    from imgrl.policies import load_policy
    from imgrl.training.distributed import World

    world = World(Accelerator(cpu=True))
    lora = LoraSpec(rank=2, alpha=4.0)
    policy = load_policy(model, lora=lora, names=("old", "frozen"), embedding_folder=cache)
    found = {
        f"{objective}/{masked}": gradient_of(policy, world, OBJECTIVES[objective], MASKED[masked])
        for objective in OBJECTIVES
        for masked in MASKED
    }
    if world.main:
        torch.save(found, out)
    world.wait()


def gradient_of(policy, world, objective, masked):
    """Two groups to a micro-batch: each of two processes holds one whole group of each."""
    from imgrl.training.rollout import advantages_of, local_rows
    from imgrl.training.update import Updater

    scramble(policy.weights)
    batch = Batch(groups=GROUPS, group_size=SIZE, micro_groups=2)
    recipe = small_recipe("unused", "unused", batch=batch, objective=objective)
    rollout = make_rollout(FLAT, mask=[row not in masked for row in range(GROUPS * SIZE)])
    share = take(rollout, local_rows(recipe, world))
    advantages, mine = advantages_of(share, recipe=recipe, world=world)
    updater = Updater(policy, recipe, world)
    updater._step = lambda number: 0.0  # keep the gradient
    result = updater.run(share, advantages, mine, round=0, step=0)
    world.add_gradients(updater.parameters)
    gradient = torch.cat([p.grad.flatten() for p in updater.parameters])
    return {"gradient": gradient, "metrics": result.metrics, "steps": result.steps}


@pytest.fixture(scope="module")
def gradients(sd3, embeddings, tmp_path_factory):
    """What one process found, and what two did."""
    files = [tmp_path_factory.mktemp("gradients") / name for name in ("one.pt", "two.pt")]
    one = start(write_gradients, sd3, embeddings, files[0])
    one.join(120)
    two(write_gradients, sd3, embeddings, files[1])
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("masked", MASKED)
def test_the_gradient_is_that_of_one_process(gradients, objective, masked):
    """Masks and the flat group leave a process without rows while the other has some. Rounding only: 1e-4 of the
    largest entry.
    """
    first, second = (found[f"{objective}/{masked}"] for found in gradients)
    largest = float(first["gradient"].abs().max())
    assert largest > 0 and first["steps"] == second["steps"] == 1
    torch.testing.assert_close(second["gradient"], first["gradient"], rtol=0, atol=1e-4 * largest)
    assert second["metrics"].keys() == first["metrics"].keys()
    for name, value in first["metrics"].items():
        assert second["metrics"][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


# ------------------------------------------------------------------ launchers

# `accelerate launch --cpu` starts one process wherever there is no MPI; its torchrun path obeys ACCELERATE_USE_CPU.
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "{port}"],
    "accelerate launch": [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    + ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "{port}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_start_the_command_line(recipe, tmp_path, launcher):
    file = tmp_path / "recipe.yaml"
    reward = tmp_path / "reward.py"
    reward.write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3)).tolist()\n")
    rewards = {"bright": RewardSpec(use=f"{reward}:bright")}
    file.write_text(
        dump(recipe(run_dir=str(tmp_path / "two"), batch=SPLIT, optimizer_lr=1e-4, rewards=rewards))
    )
    words = [word.format(port=free_port()) for word in LAUNCHERS[launcher]]
    command = [sys.executable, "-m", *words, "-m", "imgrl.cli.main", "train", str(file), "--quiet"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    process = start(train, made(recipe, tmp_path / "one", SPLIT, "bright"))
    process.join(120)
    compare(tmp_path / "one", tmp_path / "two")
    assert '"processes": 2' in (tmp_path / "two" / "environment.json").read_text()
