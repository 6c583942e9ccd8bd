"""``imgrl export``: trained weights out of a run, in forms that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgrl.cli.common import AsJson, choose_device, print_json
from imgrl.errors import CheckpointError

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or one of its checkpoints/step-N.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; default: RUN/export.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="current, sampling, old or ema; default: those that the run's evaluation scores."),
    ] = None,
    device: Annotated[str | None, typer.Option()] = None,
    as_json: AsJson = False,
) -> None:
    """Write a LoRA (or a whole pipeline) that stock diffusers and ComfyUI load, and check that they do."""
    from dataclasses import asdict

    from imgrl.config import resolve
    from imgrl.policies import load_policy
    from imgrl.resources import model_path
    from imgrl.training.checkpoint import latest_checkpoint, load_weights

    checkpoint = latest_checkpoint(run) if (run / "checkpoints").is_dir() else run
    saved = None if checkpoint is None else checkpoint / "config.yaml"
    if checkpoint is None or saved is None or not saved.is_file():
        raise CheckpointError(f"{run} is neither a run folder with a checkpoint nor a checkpoint")
    recipe = resolve(saved)
    model, weights = recipe.model, weights or recipe.evaluation.weights
    policy = load_policy(
        model_path(model.path),
        train=model.train,
        lora=model.lora,
        dtype=model.dtype,
        device=choose_device(device),
    )
    load_weights(checkpoint, policy, weights)
    folder = out or run / "export"
    policy.weights.add(weights)  # so that the manifest names them
    manifest = policy.export(folder, weights=weights)
    if as_json:
        print_json({"folder": str(folder), **asdict(manifest)})
        return
    files = ", ".join(manifest.files)
    if manifest.velocity_error is None:
        typer.echo(f"{folder}: {files}. {manifest.unverified}")
    else:
        typer.echo(f"{folder}: {files}; stock diffusers agrees to {manifest.velocity_error:.1e}")
