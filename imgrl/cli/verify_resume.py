"""``imgrl verify-resume``: proves on the user's machine that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgrl.cli.common import Arguments, AsJson, print_json, split_arguments
from imgrl.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from imgrl.recipe import Recipe

__all__ = ["compare_checkpoints", "verify_resume"]


def verify_resume(
    arguments: Arguments = None,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the uninterrupted run.")] = 4,
    stop: Annotated[int, typer.Option(min=1, help="Rounds before the interruption.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Train at once, then again with a resume in the middle, and compare every tensor bit for bit."""
    if stop >= rounds:
        raise ConfigError(f"--stop must be less than --rounds, but {stop} and {rounds} were given")
    from imgrl.config import resolve

    name, overrides = split_arguments(arguments)
    recipe = resolve(name, overrides)
    folder = Path(tempfile.mkdtemp(prefix="imgrl-verify-resume-"))
    try:
        whole = _train(recipe, folder / "whole", rounds, resume=False)
        _train(recipe, folder / "parts", stop, resume=False)
        parts = _train(recipe, folder / "parts", rounds, resume=True)
        tensors, different = compare_checkpoints(whole, parts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print_json({"tensors": tensors, "different": different})
    elif not different:
        typer.echo(
            f"equal: {tensors} tensors after {rounds} rounds, with and without a resume after round {stop}"
        )
    else:
        typer.echo(f"different: {len(different)} of {tensors} tensors, first {different[0]}", err=True)
    raise typer.Exit(1 if different else 0)


def compare_checkpoints(first: Path, second: Path) -> tuple[int, list[str]]:
    """Compare the tensors of two checkpoint folders: how many there are, and which differ in a bit.

    Raises:
        CheckpointError: if a folder holds no tensors.
    """
    import torch
    from safetensors.torch import load_file

    files = {place.relative_to(root) for root in (first, second) for place in root.rglob("*.safetensors")}
    if not files:
        raise CheckpointError(f"neither {first} nor {second} holds tensors to compare")
    count, different = 0, []
    for file in sorted(files):
        one = load_file(first / file) if (first / file).is_file() else {}
        two = load_file(second / file) if (second / file).is_file() else {}
        for key in sorted(one.keys() | two.keys()):
            count += 1
            # As bytes, because NaN differs from itself and -0 equals 0.
            same = key in one and key in two and one[key].dtype == two[key].dtype
            if not same or not torch.equal(_bytes(one[key]), _bytes(two[key])):
                different.append(f"{file}:{key}")
    return count, different


def _bytes(tensor: Tensor) -> Tensor:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _train(recipe: Recipe, folder: Path, rounds: int, *, resume: bool) -> Path:
    """Train without evaluation and return the last checkpoint."""
    from imgrl.training.checkpoint import latest_checkpoint
    from imgrl.training.image_loop import Trainer

    run = replace(recipe.run, dir=str(folder), rounds=rounds, minutes=None, deterministic=True)
    evaluation = replace(recipe.evaluation, every=0, limit=1, images_per_prompt=1, steps=(1,), grid=0)
    checkpoint = replace(recipe.checkpoint, every=0)
    # Shared by the three runs, so that prompts are encoded once.
    model = replace(
        recipe.model, embedding_folder=recipe.model.embedding_folder or str(folder.parent / "embeddings")
    )
    Trainer(replace(recipe, run=run, model=model, evaluation=evaluation, checkpoint=checkpoint)).train(
        resume=resume
    )
    last = latest_checkpoint(folder)
    if last is None:
        raise CheckpointError(f"the run in {folder} left no checkpoint")
    return last
