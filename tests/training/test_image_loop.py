"""The whole loop on a tiny random SD3: it learns, it writes what it promises, it does not grow."""

import dataclasses
import gc
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import (
    CRD,
    Batch,
    Checkpoint,
    Evaluation,
    Optimizer,
    Rollout,
    VelocityAnchor,
    brightness,
    rows_of,
)

from imgrl.anchor import Constant
from imgrl.config import resolve
from imgrl.flow import StochasticSampler, TimeSampler
from imgrl.objectives.image import AWM, DGPO, GRPO, NFT
from imgrl.policies import load_policy
from imgrl.policies.stock import open_stock_pipeline
from imgrl.training.checkpoint import latest_checkpoint, load_weights, read_checkpoint, unpack
from imgrl.training.image_loop import Trainer, due
from imgrl.training.phases import BESIDE_TRAINING, NETWORK
from imgrl.training.reporting import Silent
from imgrl.training.run_folder import finite

FREE = {"times": TimeSampler(count=2), "anchor": VelocityAnchor(weight=0.0)}


def darkness(images, prompts):
    return 1 - images.mean((1, 2, 3))


# ------------------------------------------------------------------ learning


@pytest.mark.parametrize(
    ("reward", "seed", "objective"),
    [
        (brightness, 0, CRD(**FREE)),
        (brightness, 1, CRD(**FREE)),
        (brightness, 2, CRD(**FREE)),
        (darkness, 0, CRD(**FREE)),
        (brightness, 0, NFT(**FREE, old=Constant(value=0.0))),
        (brightness, 0, AWM(**FREE, old=Constant(value=0.0))),
        (brightness, 0, DGPO(**FREE, old=Constant(value=0.0))),
        (brightness, 0, GRPO(clip=1e-2)),
        (
            darkness,
            0,
            GRPO(sampler=StochasticSampler(kind="cps", window=2, reach=1.0), clip=1e-2, ratio="guard"),
        ),
    ],
    ids=["bright-0", "bright-1", "bright-2", "dark", "nft", "awm", "dgpo", "grpo", "grpo-cps-dark"],
)
def test_a_reward_rises_in_both_directions(recipe, reward, seed, objective):
    """The random base model's brightness is 0.526 whatever the prompt, on fixed held-out noise. Seven rounds move
    it by 0.017 or more; a loop that does not learn would leave it within 0.005, and one with a sign wrong would
    lower one of bright and dark.
    """
    made = recipe(
        run_rounds=7,
        run_seed=seed,
        rewards={"bright": reward},
        batch=Batch(groups=4, group_size=6, micro_groups=4),
        optimizer=Optimizer(lr=1e-2),
        objective=objective,
        model_train="full",
        checkpoint=Checkpoint(every=0),
        evaluation_images_per_prompt=4,
    )
    summary = Trainer(made).train()
    assert summary.after["heldout/bright"] - summary.before["heldout/bright"] > 0.01
    rewards = [row["reward"] for row in rows_of(made.run.dir) if "reward" in row]
    assert sum(rewards[-2:]) > sum(rewards[:2])
    assert summary.paths["model"] == str(Path(made.run.dir) / "model") and "lora" not in summary.paths
    assert (Path(made.run.dir) / "model" / "transformer" / "config.json").is_file()


@pytest.mark.parametrize(
    "objective",
    [
        GRPO(),
        GRPO(sampler=StochasticSampler(kind="cps", window=1), ratio="guard"),
        GRPO(sampler=StochasticSampler(kind="dance"), divergence_limit=1e-3),
    ],
    ids=["sde", "cps-guard", "dance"],
)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_policy_gradient_starts_where_the_rollout_stood(recipe, objective, guidance):
    """D4 in the loop: the first update replays the stored steps with the weights and the guidance that took them,
    in other batches, and the anchor of an untrained LoRA is the policy itself."""
    made = recipe(
        run_rounds=1,
        objective=dataclasses.replace(
            objective, anchor=VelocityAnchor(weight=0.5, adaptive="none", guidance=guidance)
        ),
        rollout=Rollout(steps=3, guidance=guidance, batch=4),
    )
    Trainer(made).train()
    (row,) = [row for row in rows_of(made.run.dir) if "train/log_ratio" in row]
    assert row["train/log_ratio"] < 1e-6 and row["train/clipped"] == 0 and row["train/held"] == 0
    assert row["train/anchor_loss"] < 1e-10
    assert row["train/grad_norm"] > 0


# ---------------------------------------------------------------- run folder


@pytest.fixture(scope="module")
def finished(sd3, embeddings, tmp_path_factory):
    """A finished run of three rounds that changed the model a lot."""
    from small_runs import small_recipe

    made = small_recipe(
        sd3,
        tmp_path_factory.mktemp("runs") / "new" / "run",
        model_embedding_folder=str(embeddings),
        run_rounds=3,
        optimizer=Optimizer(lr=0.05),
        evaluation=Evaluation(
            prompts=("a sun", "a moon"), every=2, images_per_prompt=2, steps=(2, 3), grid=2
        ),
    )
    return made, Trainer(made).train()


def test_metrics_start_with_the_base_model(finished):
    made, summary = finished
    rows = rows_of(made.run.dir, timings=True)
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 3]
    first, *rounds, last = rows
    assert first["heldout/bright"] == first["heldout/bright@2"] and "heldout/bright@3" in first
    assert first["heldout/velocity_norm"] == 1.0 and "reward" not in first
    assert "heldout/bright" in rounds[1] and "heldout/bright" not in rounds[0]
    assert "heldout/bright@3" not in rounds[1]  # the later figures only before and after
    assert last["final"] == 1.0 and last["heldout/bright@3"] == summary.after["heldout/bright@3"]
    for row in rounds:
        assert 0 < row["reward"] < 1 and row["images"] == 6 * row["round"] == 6 * row["optimizer_steps"]
        assert {
            "train/loss",
            "train/variance_ratio",
            "train/grad_norm",
            "decay/old",
            "seconds/update",
        } <= row.keys()


def test_the_folder_holds_what_was_promised(finished):
    made, summary = finished
    folder = Path(made.run.dir)
    stored = json.loads((folder / "summary.json").read_text())
    assert stored == json.loads(json.dumps(summary.as_dict()))
    assert stored["before"].keys() == stored["after"].keys() and stored["rounds"] == 3
    assert stored["protocol"]["images_per_prompt"] == 2 and stored["protocol"]["steps"] == [2, 3]
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"] == torch.__version__
    assert resolve(folder / "config.yaml").batch == made.batch
    grids = [f"round-0000{n}.png" for n in (0, 2, 3)]
    assert sorted(path.name for path in (folder / "grids").iterdir()) == ["prompts.txt", *grids]
    assert (folder / "grids" / "prompts.txt").read_text().splitlines() == list(made.evaluation.prompts)
    assert {path.name for path in (folder / "lora").iterdir()} >= {
        "pytorch_lora_weights.safetensors",
        "comfyui_lora.safetensors",
    }
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-2", "step-3"]
    assert not list(folder.rglob("*.partial")) and not list(folder.rglob(".*"))


def test_phases_cover_the_rounds(finished):
    """Network, VAE and reward take nearly all of the time, and with the rest it adds up to all of it."""
    _, summary = finished
    spent = summary.phase_seconds
    assert 0.8 * 60 * summary.minutes < sum(spent[name] for name in NETWORK) <= 60 * summary.minutes
    training = {name: seconds for name, seconds in spent.items() if name not in BESIDE_TRAINING}
    assert sum(training.values()) == pytest.approx(60 * summary.minutes)
    assert training.keys() == {*NETWORK, "points", "blend", "other"}


def test_phases_go_on_after_a_resume(recipe):
    made = recipe(run_rounds=1)
    first = Trainer(made).train()
    longer = dataclasses.replace(made, run=dataclasses.replace(made.run, rounds=2))
    both = Trainer(longer).train(resume=True)
    assert both.phase_seconds["update"] > first.phase_seconds["update"]
    training = sum(s for name, s in both.phase_seconds.items() if name not in BESIDE_TRAINING)
    assert training == pytest.approx(60 * both.minutes)


def test_what_cannot_be_said_is_null_or_absent(recipe):
    """One image a prompt has no diversity; JSON knows no NaN."""
    made = recipe(run_rounds=1)
    Trainer(made).train()
    for line in (Path(made.run.dir) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
        assert "heldout/diversity" not in row
    assert finite({"a": [float("nan"), 1.0], "b": float("inf")}) == {"a": [None, 1.0], "b": None}


def test_the_weights_scored_are_the_weights_exported(recipe):
    settings = Evaluation(
        prompts=("a sun",), every=0, images_per_prompt=1, steps=(2,), weights="ema", ema=0.5
    )
    made = recipe(run_rounds=2, evaluation=settings)
    trainer = Trainer(made)
    trainer.train()
    saved = unpack(read_checkpoint(latest_checkpoint(Path(made.run.dir)))[1]["weights"])
    exported = load_file(Path(made.run.dir) / "lora" / "pytorch_lora_weights.safetensors")
    name = next(key for key in exported if key.endswith("attn.to_q.lora_A.weight"))
    matches = {
        which: any(torch.equal(tensor, exported[name]) for tensor in named.values())
        for which, named in saved.items()
    }
    assert matches["ema"] and not matches["current"]


def test_stock_diffusers_draws_the_trained_models_images(finished, sd3):
    """The exported LoRA in a fresh stock pipeline, against the checkpoint in our sampler."""
    made, _ = finished
    policy = load_policy(sd3, lora=made.model.lora, names=("frozen",))
    load_weights(latest_checkpoint(Path(made.run.dir)), policy)

    def ours(weights):
        return policy.sample(
            policy.encode(["a red circle"]), [3], steps=3, weights=weights, height=16, width=16
        )

    pipe = open_stock_pipeline(sd3)
    pipe.load_lora_weights(Path(made.run.dir) / "lora")
    stock = pipe(
        "a red circle",
        generator=[torch.Generator().manual_seed(3)],
        output_type="latent",
        height=16,
        width=16,
        num_inference_steps=3,
        guidance_scale=1.0,
        max_sequence_length=policy.max_sequence_length,
    ).images
    assert (ours("current") - ours("frozen")).abs().max() > 1e-3  # training changed something
    torch.testing.assert_close(stock, ours("current"), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("round", "every", "expected"), [(4, 2, True), (5, 2, False), (3, 0, False)])
def test_what_happens_every_so_many_rounds(round, every, expected):
    assert due(round, every) is expected


def test_minutes_end_a_run(recipe):
    made = recipe(run_rounds=1000, run_minutes=1e-4)
    summary = Trainer(made).train()
    assert summary.rounds == 1 and not summary.interrupted and summary.after
    again = Trainer(made).train(resume=True)  # its time is used up
    assert again.rounds == 1 and again.minutes == summary.minutes and again.after == summary.after


# -------------------------------------------------------------------- memory


def test_rounds_leave_nothing_behind(recipe):
    """As many live tensors, with as many numbers in them, after round 7 as after round 3."""
    counts = {}

    class Counting(Silent):
        def round_end(self, round, metrics):
            if round in (3, 7):
                gc.collect()
                alive = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
                counts[round] = len(alive), sum(tensor.numel() for tensor in alive)

    Trainer(recipe(run_rounds=7, checkpoint=Checkpoint(every=0)), reporter=Counting()).train()
    assert counts[7] == counts[3]
