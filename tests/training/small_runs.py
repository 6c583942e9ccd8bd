"""The smallest real training runs: a random SD3 of two blocks, 16 px images, a few images a round.

Imported by the tests and by the processes that they start.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import imgrl  # noqa: F401
from imgrl.anchor import VelocityAnchor
from imgrl.flow import TimeSampler
from imgrl.recipe import (
    CRD,
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    LoraSpec,
    Model,
    Optimizer,
    Recipe,
    RewardSpec,
    Rollout,
    Run,
)
from imgrl.training import rollout as rollouts
from imgrl.types import Prompt, Samples, Scores

PROMPTS = ("a red circle", "a blue square", "two green stars", "a black ring", "a cat", "a dog")
HELDOUT = ("a sun", "a moon")
GROUPS, SIZE = 4, 3
CHEAP = CRD(times=TimeSampler(count=2), anchor=VelocityAnchor(weight=0.1, guidance=2.0))


def brightness(images, prompts):
    """Mean pixel, within [0, 1]."""
    return images.mean((1, 2, 3)).tolist()


def flat_for_squares(images, prompts):
    """Brightness, but the same for every image of one prompt: a group without signal."""
    means = images.mean((1, 2, 3)).tolist()
    return [0.5 if "square" in text else mean for text, mean in zip(prompts, means, strict=True)]


def sometimes(images, prompts):
    """Brightness, or nothing at all for the darker part of the images: they are masked."""
    means = images.mean((1, 2, 3)).tolist()
    return [mean if round(mean * 1e4) % 3 else None for mean in means]


def small_recipe(model: Path | str, folder: Path | str, **changes: Any) -> Recipe:
    """A recipe of 3 groups of 2 images; ``changes`` replace whole parts, or keys as in ``run_rounds=4``."""
    recipe = Recipe(
        run=Run(dir=str(folder), rounds=2, seed=3),
        model=Model(path=str(model), lora=LoraSpec(rank=2, alpha=4.0), height=16, width=16),
        data=Data(prompts=PROMPTS),
        rewards={"bright": RewardSpec(use=brightness, retries=0)},
        rollout=Rollout(steps=3),
        batch=Batch(groups=3, group_size=2, micro_groups=1),
        objective=CHEAP,
        optimizer=Optimizer(lr=1e-3),
        evaluation=Evaluation(prompts=HELDOUT, every=0, images_per_prompt=1, steps=(2,), grid=0),
        checkpoint=Checkpoint(every=1),
    )
    for key, value in changes.items():
        part, _, name = key.partition("_")
        new = replace(getattr(recipe, part), **{name: value}) if name else value
        recipe = replace(recipe, **{part: new})
    return recipe


def make_rollout(
    rewards: list[float] | None = None, mask: list[bool] | None = None, seed: int = 0, round: int = 0
) -> rollouts.Rollout:
    """A rollout of random latents in 4 groups of 3; rewards default to distinct numbers in (0, 1)."""
    n, generator = GROUPS * SIZE, torch.Generator().manual_seed(seed)
    values = torch.rand(n, generator=generator) if rewards is None else torch.tensor(rewards)
    keep = torch.ones(n, dtype=torch.bool) if mask is None else torch.tensor(mask)
    rows = torch.arange(n)
    samples = Samples(
        prompts=tuple(Prompt(id=int(r) // SIZE, text=PROMPTS[int(r) // SIZE]) for r in rows),
        group=round * GROUPS + rows // SIZE,
        seeds=tuple(rows.tolist()),
        latents=torch.randn(n, 16, 2, 2, generator=generator),
        images=torch.zeros(n, 3, 16, 16),
    )
    total = values.masked_fill(~keep, float("nan"))
    return rollouts.Rollout(
        samples=samples,
        scores=Scores(values={"bright": total}, total=total, mask=keep, failures={}),
        rows=rows,
        failures={},
    )


def take(rollout: rollouts.Rollout, rows: torch.Tensor) -> rollouts.Rollout:
    """Some rows of a rollout: a process's share."""
    samples, scores = rollout.samples, rollout.scores
    return rollouts.Rollout(
        rows=rollout.rows[rows],
        samples=replace(
            samples,
            prompts=tuple(samples.prompts[int(r)] for r in rows),
            group=samples.group[rows],
            seeds=tuple(samples.seeds[int(r)] for r in rows),
            latents=samples.latents[rows],
            images=samples.images[rows],
        ),
        scores=replace(
            scores,
            values={name: values[rows] for name, values in scores.values.items()},
            total=scores.total[rows],
            mask=scores.mask[rows],
        ),
        failures=rollout.failures,
    )


def scramble(weights: Any) -> None:
    """Give the adapters values that differ, so that no two velocities agree by chance."""
    generator = torch.Generator().manual_seed(5)
    for name in ("current", "old"):
        for tensor in weights.tensors(name).values():
            tensor.data.normal_(std=0.2, generator=generator)
            tensor.grad = None


def last_tensors(folder: Path | str) -> dict[str, torch.Tensor]:
    """Every tensor of a run's newest checkpoint."""
    from imgrl.training.checkpoint import latest_checkpoint

    newest = latest_checkpoint(Path(folder))
    assert newest is not None
    files = sorted(newest.glob("*.safetensors"))
    return {f"{file.stem}:{key}": value for file in files for key, value in load_file(file).items()}


def assert_same_bits(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """Equal names, types and bits."""
    assert one.keys() == two.keys() and one
    for key, value in one.items():
        assert value.dtype == two[key].dtype and torch.equal(value, two[key]), key


def rows_of(folder: Path | str, *, timings: bool = False) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without wall times unless they are wanted."""
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds/", "minutes")
    return [{k: v for k, v in row.items() if timings or not k.startswith(clock)} for row in rows]


def train(recipe: Recipe, *, resume: bool = False, events: Any = None) -> None:
    """Train in a process of its own; ``events`` is a pipe that is told of every phase."""
    from imgrl.training.image_loop import Trainer
    from imgrl.training.reporting import Silent

    class Telling(Silent):
        def phase(self, name: str) -> None:
            if events is not None:
                events.send(name)

    Trainer(recipe, reporter=Telling()).train(resume=resume)


def start(target: Callable[..., None], *arguments: Any, **environment: str) -> Any:
    """Start ``target(*arguments)`` in a process with everything already imported, one thread, no GPU."""
    context = multiprocessing.get_context("forkserver")
    here = str(Path(__file__).parent)
    if here not in os.environ.get("PYTHONPATH", ""):
        os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    context.set_forkserver_preload(["preload"])
    process = context.Process(target=_child, args=(target, arguments, environment), daemon=True)
    process.start()
    return process


def _child(target: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment, ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    target(*arguments)
