"""Models sharded over two processes on a CPU, by torch's fully_shard, beside runs that are not sharded.

No GPU was there to try it on, and accelerate shards over GPUs alone: `sharded.cpus_may_shard` has it take the CPUs for
some. All that comes after that question is as it is on GPUs, but for streams, device moves and NCCL.
"""

import json
import shutil

import pytest
import sharded
import torch
from safetensors.torch import load_file
from two_processes import command, two
from typer.testing import CliRunner

from imgrl.cli.main import app

SMALL = [
    "run.steps=4",
    "data.count=32",
    "generation.max_tokens=12",
    "evaluation.limit=4",
    "evaluation.samples=1",
    "evaluation.every=0",
    "checkpoint.every=2",
    "optimizer.lr=1e-2",  # far enough for the anchor's pull to show
]


def arguments(name, lm, folder, *more):
    size = 4 if more and more[0].startswith("rewards=") else 1
    given = [f"model.path={lm}", f"run.dir={folder}", *SMALL, "batch.groups=4", f"batch.group_size={size}"]
    return [f"tiny-lm/{name}", *{text.split("=")[0]: text for text in [*given, *more]}.values()]


def told(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder):
    return [row for row in told(folder) if "loss" in row]


def weights(folder):
    (file,) = (folder / "model").glob("*model.safetensors")
    return load_file(file)


def cut_back(folder, step):
    """Leave what a run that was killed after a step leaves."""
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "model")
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)


@pytest.mark.parametrize("by_layer", [True, False])
def test_a_copy_of_a_sharded_model_speaks_as_it_did_and_gives_its_weights_back(by_layer, lm):
    two(sharded.copies_speak_as_the_model_did, str(lm), by_layer)


def test_copies_of_sharded_models_follow_and_are_kept(lm):
    two(sharded.copies_follow_and_are_kept, str(lm))


def test_a_sharded_run_learns_what_one_process_learns_and_resumes(lm, tmp_path):
    """Full fine-tuning against a base that moves, clipped, two micro-batches an update."""
    more = [
        "anchor={name: ema, schedule: 0.9}",
        "objective.kl_weight=0.5",
        "optimizer.clip=0.5",
        "evaluation.kl=true",
    ]
    one, both = tmp_path / "one", tmp_path / "two"
    assert not app(["lm", "train", *arguments("sft-kl", lm, one, *more)], standalone_mode=False)
    two(sharded.train, arguments("sft-kl", lm, both, "batch.micro=1", *more))
    assert (both / "checkpoints" / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir()  # it was sharded
    for own, expected in zip(steps(both), steps(one), strict=True):
        for name in ("loss", "grad_norm"):
            assert own[name] == pytest.approx(expected[name], rel=1e-5)
    assert steps(one)[-1]["objective/anchor_kl"] > 1e-3
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (one, both)]
    assert ends[0]["after"]["kl_to_base"] > 1e-2
    for when in ("before", "after"):
        assert ends[1][when] == pytest.approx(ends[0][when], rel=1e-3, abs=1e-6)
    whole, anchors = weights(both), load_file(both / "checkpoints" / "checkpoint-4" / "anchors.safetensors")
    expected = load_file(one / "checkpoints" / "checkpoint-4" / "anchors.safetensors")
    for found, wanted in ((whole, weights(one)), (anchors, expected)):
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=0)
    rows = steps(both)
    cut_back(both, 2)
    refused = CliRunner().invoke(app, ["lm", "train", "--resume", str(both)])
    assert refused.exit_code == 2 and "was written with FSDP" in refused.stderr
    two(sharded.train, ["--resume", str(both)])
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(both).items())
    assert [row["loss"] for row in steps(both)] == [row["loss"] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("grpo", ["objective.kl_weight=0.1", "model.train=lora", "model.lora.rank=2"]),
        ("remix", ["objective.reincarnate_at=2", "objective.replay=0.7", "batch.groups=8"]),
        ("meta-distill", ["objective.length=1"]),
        ("dpo", ["model.train=lora", "model.lora.rank=2"]),
    ],
)
def test_processes_that_shard_learn_what_those_that_do_not_learn(name, more, lm, teacher, tmp_path):
    """The same number of processes, so the same samples; drift and Pass@1 on the way as well."""
    (tmp_path / "own.py").write_text(
        "def digits(completions, prompts, **columns):\n"
        "    return [sum(c.isdigit() for c in text) / (len(text) + 1) for text in completions]\n"
    )
    reward = [] if name == "dpo" else [f"rewards={{digits: '{tmp_path}/own.py:digits'}}"]
    more = [*reward, *more, *([f"model.teacher={teacher}"] if name == "meta-distill" else [])]
    plain, cut = tmp_path / "plain", tmp_path / "cut"
    watched = [*more, "evaluation.every=2"]
    two(command, ["lm", "train", *arguments(name, lm, plain, *watched)])
    two(sharded.train, arguments(name, lm, cut, *watched))
    clocks = ("time", "runtime", "per_second")
    for own, expected in zip(told(cut), told(plain), strict=True):
        kept = {key: value for key, value in expected.items() if not key.endswith(clocks)}
        assert {key: own[key] for key in kept} == pytest.approx(kept, rel=1e-3, abs=1e-6)
    assert sum("weights/relative_update" in row for row in told(plain)) == 2
    for key, tensor in weights(plain).items():
        torch.testing.assert_close(weights(cut)[key], tensor, atol=2e-5, rtol=0)
    whole, rows = weights(cut), steps(cut)
    cut_back(cut, 2)
    two(sharded.train, ["--resume", str(cut)])
    assert all(torch.equal(tensor, whole[key]) for key, tensor in weights(cut).items())
    assert [row["loss"] for row in steps(cut)] == [row["loss"] for row in rows]
