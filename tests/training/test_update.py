"""The update half of a round, on a real tiny network with its inputs recorded."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import CHEAP, GROUPS, SIZE, Batch, make_rollout, scramble, small_recipe, take
from torch import Tensor

from imgrl.analysis.masks import training_mask
from imgrl.anchor import Constant, Linear, VelocityAnchor
from imgrl.errors import ModelError
from imgrl.flow import TimeSampler
from imgrl.objectives.image import AWM, CRD, DGPO, NFT
from imgrl.policies import LoraSpec, load_policy
from imgrl.recipe import Optimizer
from imgrl.training.distributed import World
from imgrl.training.groups import group_advantages
from imgrl.training.image_loop import Trainer
from imgrl.training.points import noised_points
from imgrl.training.update import Updater

LEVELS = TimeSampler(count=2)


@pytest.fixture(scope="module")
def loaded(sd3, embeddings):
    """One policy for all tests of this file; ``fresh`` puts it back to its start."""
    return load_policy(
        sd3,
        lora=LoraSpec(rank=2, alpha=4.0),
        names=("old", "sampling", "frozen"),
        embedding_folder=embeddings,
    )


@pytest.fixture
def policy(loaded):
    """The policy with adapters that differ, so that no two velocities agree by chance."""
    scramble(loaded.weights)
    return loaded


@pytest.fixture
def world():
    from accelerate import Accelerator

    return World(Accelerator(cpu=True))


class Recorder:
    """A policy that notes what the loop asks of it."""

    def __init__(self, policy):
        self._policy, self.calls = policy, []

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def velocity(self, x, sigma, cond, **options) -> Tensor:
        self.calls.append(
            {
                "x": x.clone(),
                "sigma": sigma.clone(),
                "rows": len(x),
                "grad": torch.is_grad_enabled(),
                **options,
            }
        )
        return self._policy.velocity(x, sigma, cond, **options)

    def of(self, weights):
        return [call for call in self.calls if call["weights"] == weights]


def make_recipe(**changes):
    geometry = Batch(groups=GROUPS, group_size=SIZE, micro_groups=2)
    return small_recipe("unused", "unused", **{"batch": geometry, "objective": CHEAP, **changes})


def update(policy, recipe, world, rollout, *, step=False, round=0):
    """Run a round's update; without ``step`` the summed gradient is kept and the weights are not."""
    advantages = group_advantages(
        rollout.scores.total, rollout.samples.group, std="group", mask=rollout.scores.mask
    )
    updater = Updater(policy, recipe, world)
    if not step:
        updater._step = lambda number: 0.0
    result = updater.run(rollout, advantages, torch.arange(GROUPS * SIZE), round=round, step=0)
    return result, [None if p.grad is None else p.grad.clone() for p in updater.parameters]


# ------------------------------------------------------------------ points


def test_current_old_and_anchor_see_the_same_points(policy, world):
    recorder = Recorder(policy)
    update(recorder, make_recipe(), world, make_rollout())
    current, old, anchor = (recorder.of(name) for name in ("current", "old", "frozen"))
    assert len(current) == len(old) == len(anchor) == 2 * CHEAP.times.count  # micro-batches x levels
    for one, two, three in zip(current, old, anchor, strict=True):
        assert torch.equal(one["x"], two["x"]) and torch.equal(one["x"], three["x"])
        assert torch.equal(one["sigma"], two["sigma"]) and torch.equal(one["sigma"], three["sigma"])
    assert {call["guidance"] for call in anchor} == {2.0}
    assert {call["guidance"] for call in current + old} == {1.0}


def test_noise_is_shared_inside_a_group_where_the_objective_says_so():
    recipe = make_recipe(objective=DGPO(times=LEVELS))
    for noised in points(recipe, make_rollout(), torch.arange(12)):
        by_group = noised.noise.view(GROUPS, SIZE, -1)
        assert torch.equal(by_group, by_group[:, :1].expand_as(by_group))
        assert len(by_group[:, 0].unique(dim=0)) == GROUPS


def points(recipe, rollout, rows, round=0):
    sigmas = torch.linspace(1, 0, 5)
    return [noised_points(rollout, rows, k, recipe=recipe, sigmas=sigmas, round=round) for k in range(2)]


def test_points_depend_on_their_keys_alone():
    """A share of the rows, in another order and another micro-batch, gets the very points of the whole."""
    recipe, rollout = make_recipe(), make_rollout()
    whole = points(recipe, rollout, torch.arange(12))
    rows = torch.tensor([7, 1, 10])
    share = take(rollout, rows)
    other = make_recipe(batch=Batch(groups=GROUPS, group_size=SIZE, micro_groups=4))
    for full, part in zip(whole, points(other, share, torch.arange(3)), strict=True):
        for name in ("noise", "sigma", "noisy", "target"):
            assert torch.equal(getattr(full, name)[rows], getattr(part, name))


def test_a_group_shares_its_level_and_nothing_shares_noise():
    first, second = points(make_recipe(), make_rollout(), torch.arange(12))
    for noised in (first, second):
        assert all(len(part.unique()) == 1 for part in noised.sigma.view(GROUPS, SIZE))
        torch.testing.assert_close(noised.target, noised.noise - noised.clean)
    noises = torch.cat(
        [
            first.noise,
            second.noise,
            points(make_recipe(), make_rollout(round=1), torch.arange(12), 1)[0].noise,
        ]
    )
    assert len(noises.flatten(1).unique(dim=0)) == 36


# --------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "objective", [CHEAP, NFT(times=LEVELS), AWM(times=LEVELS), DGPO(times=LEVELS)], ids=lambda o: o.name
)
def test_micro_batches_add_up_to_the_whole(policy, world, objective):
    """Rounding only, float32: 1e-4 of the largest gradient."""
    found = {}
    for micro in (1, 2, 4):
        policy.transformer.zero_grad()
        recipe = make_recipe(
            objective=objective, batch=Batch(groups=GROUPS, group_size=SIZE, micro_groups=micro)
        )
        found[micro] = update(policy, recipe, world, make_rollout())
    whole = found[4][1]
    largest = max(float(g.abs().max()) for g in whole)
    assert largest > 0
    for micro in (1, 2):
        for one, two in zip(found[micro][1], whole, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-4 * largest)
        for name, value in found[4][0].metrics.items():
            assert found[micro][0].metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("micro", [1, 4])
def test_an_anchor_that_follows_the_batch_follows_the_whole_round(policy, world, micro, monkeypatch):
    """Mean over all twelve images, those of flat groups included, however the round is cut."""
    seen = []
    monkeypatch.setattr(
        VelocityAnchor,
        "weights",
        lambda self, q, raw, gather=None: seen.append(raw) or torch.zeros_like(q),
    )
    objective = dataclasses.replace(
        CHEAP, anchor=VelocityAnchor(weight=0.3, guidance=2.0, adaptive="batch_mean_raw")
    )
    rewards = [1.0] * 6 + [0.0, 0.3, 0.6, 0.1, 0.1, 0.4]
    recipe = make_recipe(objective=objective, batch=Batch(groups=GROUPS, group_size=SIZE, micro_groups=micro))
    update(policy, recipe, world, make_rollout(rewards))
    assert seen and all(torch.allclose(raw, torch.tensor(7.5 / 12)) for raw in seen)


def test_an_overflow_in_half_precision_is_no_step(policy, world):
    """The scaler leaves the weights alone; schedules and copies must not move either."""
    recipe, rollout = make_recipe(), make_rollout()
    updater = Updater(policy, recipe, world)
    updater.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=True)
    hook = updater.parameters[0].register_hook(lambda gradient: gradient + float("inf"))
    before = {k: v.clone() for k, v in policy.weights.state_dict("current").items()}
    advantages = group_advantages(rollout.scores.total, rollout.samples.group, std="group")
    result = updater.run(rollout, advantages, torch.arange(GROUPS * SIZE), round=0, step=0)
    hook.remove()
    assert updater.scaler.get_scale() == 4.0  # it saw the overflow
    assert result.steps == 0 and "train/grad_norm" not in result.metrics
    assert all(torch.equal(v, before[k]) for k, v in policy.weights.state_dict("current").items())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_no_step_and_ends_the_run(policy, world, broken):
    recipe, rollout = make_recipe(), make_rollout()
    updater = Updater(policy, recipe, world)
    hook = updater.parameters[0].register_hook(lambda gradient: gradient * broken)
    before = {k: v.clone() for k, v in policy.weights.state_dict("current").items()}
    advantages = group_advantages(rollout.scores.total, rollout.samples.group, std="group")
    with pytest.raises(ModelError, match="gradient of optimiser step 1 is nan, so the step was not taken"):
        updater.run(rollout, advantages, torch.arange(GROUPS * SIZE), round=0, step=0)
    hook.remove()
    assert all(torch.equal(v, before[k]) for k, v in policy.weights.state_dict("current").items())


def stepped(policy, world, *, clip, scale=None):
    """The gradient that the optimiser steps with, in one vector, and the round's figures."""
    scramble(policy.weights)
    made = make_recipe(
        optimizer=Optimizer(lr=1e-3, clip=clip), model_dtype="fp32" if scale is None else "fp16"
    )
    updater, seen = Updater(policy, made, world), []
    assert updater.scaler.is_enabled() is (scale is not None)
    if scale is not None:
        updater.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def look(optimizer, *_):
        seen.append(
            torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]])
        )

    updater.optimizer.register_step_pre_hook(look)
    rollout = make_rollout()
    advantages = group_advantages(rollout.scores.total, rollout.samples.group, std="group")
    result = updater.run(rollout, advantages, torch.arange(GROUPS * SIZE), round=0, step=0)
    (gradient,) = seen
    return gradient, result.metrics


def test_the_gradient_is_clipped_to_the_norm_asked_for(policy, world):
    """In length, not in direction; what is logged is the length before."""
    free, metrics = stepped(policy, world, clip=None)
    norm = float(free.norm())
    assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    clipped, metrics = stepped(policy, world, clip=norm / 50)
    assert float(clipped.norm()) == pytest.approx(norm / 50, rel=1e-3)
    assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(50 * clipped, free, rtol=1e-3, atol=1e-6 * norm)
    assert torch.equal(stepped(policy, world, clip=2 * norm)[0], free)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_the_scale_of_half_precision_losses_is_gone_before_clipping(policy, world, clip):
    """A power of two, so that not a bit of the gradient changes on the way."""
    plain, metrics = stepped(policy, world, clip=clip)
    scaled, others = stepped(policy, world, clip=clip, scale=8.0)
    assert torch.equal(scaled, plain) and plain.norm() > 5e-4
    assert others == metrics


@pytest.mark.parametrize("weights", [(), (3.0, 0.5)], ids=["alike", "weighted levels"])
def test_the_gradient_is_that_of_the_mean_loss_over_points(policy, world, weights):
    """Against the loss written down directly: NFT at equal copies, no anchor, all points in one tensor."""
    times = TimeSampler(count=2, weights=weights)
    recipe = make_recipe(objective=NFT(times=times, anchor=VelocityAnchor(weight=0.0)))
    rollout = make_rollout()
    _, gradient = update(policy, recipe, world, rollout)
    policy.transformer.zero_grad()
    advantage = group_advantages(rollout.scores.total, rollout.samples.group, std="group").advantage.float()
    q, total = (advantage.clamp(-5, 5) / 10 + 0.5), 0.0
    sigmas = policy.sigmas(recipe.rollout.steps, 16, 16)
    for level in range(2):
        noised = noised_points(rollout, torch.arange(12), level, recipe=recipe, sigmas=sigmas, round=0)
        cond = policy.encode([prompt.text for prompt in rollout.samples.prompts])
        v = policy.velocity(noised.noisy, noised.sigma, cond)
        v_old = policy.velocity(noised.noisy, noised.sigma, cond, weights="old")
        for sign, share in ((1, q), (-1, 1 - q)):
            # beta 1: v+ is v itself, v- its mirror image in the old velocity
            mirrored = v if sign == 1 else 2 * v_old - v
            error = noised.sigma[:, None, None, None] * (mirrored - noised.target)
            scale = error.detach().abs().mean((1, 2, 3))
            factor = weights[level] if weights else 1.0
            total = total + factor * (5 * share * error.square().mean((1, 2, 3)) / scale).sum()
    (total / 24).backward()
    for one, parameter in zip(gradient, policy.weights.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=0, atol=1e-4 * float(parameter.grad.abs().max()))


# ------------------------------------------------- groups and rows left out

FLAT = [0.1, 0.4, 0.9, 0.5, 0.5, 0.5, 0.3, 0.2, 0.8, 0.7, 0.1, 0.6]  # group 1 has no spread


def test_groups_without_signal_cost_no_forward(policy, world):
    recorder = Recorder(policy)
    recipe = make_recipe(batch=Batch(groups=GROUPS, group_size=SIZE, micro_groups=1))
    result, _ = update(recorder, recipe, world, make_rollout(FLAT))
    assert len(recorder.of("current")) == (GROUPS - 1) * 2
    assert all(call["rows"] == SIZE for call in recorder.calls)
    recorder.calls.clear()
    policy.transformer.zero_grad()
    result, gradient = update(recorder, recipe, world, make_rollout([0.5] * 12), step=True)
    assert result.steps == 0 and not recorder.calls and gradient[0] is None
    assert not any(name.startswith("train/") for name in result.metrics)


def test_masked_rows_are_left_out(policy, world):
    """As if they had never been: the same gradient whatever the masked images look like, and no NaN."""
    mask = [True] * 12
    mask[4] = mask[9] = mask[10] = False  # the last group keeps one row, so it is dropped
    recorder = Recorder(policy)
    rollout = make_rollout(mask=mask)
    _, gradient = update(recorder, make_recipe(), world, rollout)
    assert [call["rows"] for call in recorder.of("current")] == [5, 5, 3, 3]
    rollout.samples.latents[[4, 9, 10, 11]] = 1e6
    policy.transformer.zero_grad()
    _, again = update(policy, make_recipe(), world, rollout)
    for one, two in zip(gradient, again, strict=True):
        assert torch.isfinite(one).all() and torch.equal(one, two)


def test_without_an_anchor_the_frozen_model_never_runs(policy, world):
    recorder = Recorder(policy)
    free = CRD(times=TimeSampler(count=2), anchor=VelocityAnchor(weight=0.0))
    result, _ = update(recorder, make_recipe(objective=free), world, make_rollout())
    assert recorder.of("current") and not recorder.of("frozen")
    assert "train/anchor_gap" not in result.metrics


# -------------------------------------------------------------------- steps


def test_two_updates_a_round_take_two_steps(policy, world):
    """The old copy stays where it was before the first; the second trains on the second half of the groups."""
    recorder = Recorder(policy)
    recipe = make_recipe(batch=Batch(groups=GROUPS, group_size=SIZE, micro_groups=1, updates_per_round=2))
    before = {k: v.clone() for k, v in policy.weights.state_dict("old").items()}
    start = {k: v.clone() for k, v in policy.weights.state_dict("current").items()}
    result, _ = update(recorder, recipe, world, make_rollout(), step=True)
    assert result.steps == 2
    assert all(torch.equal(v, before[k]) for k, v in policy.weights.state_dict("old").items())
    assert any(not torch.equal(v, start[k]) for k, v in policy.weights.state_dict("current").items())
    first, *_, last = recorder.of("old")
    assert not torch.equal(first["x"], last["x"])


def test_an_update_without_signal_takes_no_step(policy, world):
    recipe = make_recipe(batch=Batch(groups=GROUPS, group_size=SIZE, micro_groups=2, updates_per_round=2))
    rewards = [0.5] * 6 + FLAT[6:]  # the first update's groups are flat
    result, _ = update(policy, recipe, world, make_rollout(rewards), step=True)
    assert result.steps == 1


def test_schedules_count_steps(recipe):
    """Two steps a round: after two rounds the ramp of the old copy stands at its value of step 4."""
    from small_runs import rows_of

    from imgrl.anchor import Ramp
    from imgrl.training.image_loop import Trainer

    ramp = Ramp(start=0, value=0.1, slope=0.05, end=0.9)
    objective = CRD(
        times=TimeSampler(count=2), old=ramp, sampling=Constant(value=0.25), anchor=VelocityAnchor(weight=0.0)
    )
    made = recipe(
        objective=objective, batch=Batch(groups=4, group_size=2, micro_groups=2, updates_per_round=2)
    )
    trainer = Trainer(made)
    trainer.train()
    rows = [row for row in rows_of(made.run.dir) if "reward" in row]
    assert trainer.step == 4 and [row["optimizer_steps"] for row in rows] == [2, 4]
    assert [row["decay/old"] for row in rows] == pytest.approx([0.2, 0.3])
    assert [row["decay/sampling"] for row in rows] == [0.25, 0.25]


def test_master_weights_and_moments_stay_float32_under_bf16(sd3, embeddings, world):
    policy = load_policy(
        sd3,
        lora=LoraSpec(rank=2, alpha=4.0),
        names=("old", "frozen"),
        dtype="bf16",
        embedding_folder=embeddings,
    )
    assert (
        next(policy.transformer.transformer_blocks[0].attn.to_q.base_layer.parameters()).dtype
        == torch.bfloat16
    )
    for tensor in policy.weights.tensors("current").values():
        tensor.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    recipe = make_recipe(objective=dataclasses.replace(CHEAP, sampling=None))
    updater = Updater(policy, recipe, world)
    rollout = make_rollout()
    advantages = group_advantages(rollout.scores.total, rollout.samples.group, std="group")
    before = [p.detach().clone() for p in updater.parameters]
    updater.run(rollout, advantages, torch.arange(12), round=0, step=0)
    assert {p.dtype for p in updater.parameters} == {torch.float32}
    moments = {v.dtype for state in updater.optimizer.state.values() for v in state.values()}
    assert moments == {torch.float32}
    # a first AdamW step moves by the learning rate, 1e-3: far below bfloat16's spacing next to 0.2
    moved = torch.cat([(p - b).abs().flatten() for p, b in zip(updater.parameters, before, strict=True)])
    assert 5e-4 < moved.median() < 2e-3


@pytest.mark.parametrize(("step", "expected"), [(0, 1e-3), (6, 4e-4), (10, 0.0)])
def test_the_learning_rate_follows_its_scale(policy, world, step, expected):
    small = make_recipe()
    decay = Linear(first=1.0, last=0.0, steps=10)
    recipe = dataclasses.replace(small, optimizer=dataclasses.replace(small.optimizer, lr=1e-3, scale=decay))
    rollout = make_rollout()
    advantages = group_advantages(rollout.scores.total, rollout.samples.group, std="group")
    updater = Updater(policy, recipe, world)
    before = [p.detach().clone() for p in updater.parameters]
    updater.run(rollout, advantages, torch.arange(GROUPS * SIZE), round=0, step=step)
    moved = torch.cat([(p - b).abs().flatten() for p, b in zip(updater.parameters, before, strict=True)])
    # a first AdamW step moves every parameter that has a gradient by the rate, and decays it by rate x 1e-4
    assert moved.max().item() == pytest.approx(expected, rel=0.02, abs=0)


def test_a_masked_lora_run_leaves_a_model_whose_other_entries_are_as_they_were(recipe, sd3):
    drift = {"evaluation_weight_drift": 2, "evaluation_every": 1}
    made = recipe(model_mask="low", run_rounds=2, optimizer=Optimizer(lr=1e-2), **drift)
    Trainer(made).train()
    folder = Path(made.run.dir)
    assert not (folder / "lora").exists()
    base, trained = (
        load_file(part / "transformer" / "diffusion_pytorch_model.safetensors")
        for part in (sd3, folder / "model")
    )
    name = "transformer_blocks.0.attn.to_q.weight"
    may = training_mask(base[name], "low")
    assert torch.equal(trained[name][~may], base[name][~may])
    assert not torch.equal(trained[name][may], base[name][may])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    sparsity = [row["weights/sparsity"] for row in rows if "weights/sparsity" in row]
    assert sparsity and all(0.45 <= value < 1 for value in sparsity)


def test_a_masked_run_leaves_the_other_entries_as_they_were(recipe, sd3):
    made = recipe(model_train="full", model_mask="low", run_rounds=1, optimizer=Optimizer(weight_decay=0.1))
    Trainer(made).train()
    weights = load_file(Path(made.run.dir) / "checkpoints" / "step-1" / "weights.safetensors")
    base = load_file(sd3 / "transformer" / "diffusion_pytorch_model.safetensors")
    name = "transformer_blocks.0.attn.to_q.weight"
    may, trained = training_mask(base[name], "low"), weights[f"current/{name}"]
    assert torch.equal(trained[~may], base[name][~may])
    assert not torch.equal(trained[may], base[name][may])
