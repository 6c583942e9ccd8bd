"""``imgrl export``: trained weights out of a run, in forms that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgrl.cli.common import AsJson, choose_device, print_json
from imgrl.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from imgrl.policies import Policy

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
    strength: Annotated[
        float,
        typer.Option(min=0.0, help="Scale of a LoRA: 0.5 gives half of what was learned, a slider of style."),
    ] = 1.0,
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
        mask=model.lora_mask,
        mask_seed=recipe.run.seed,
        dtype=model.dtype,
        device=choose_device(device),
    )
    load_weights(checkpoint, policy, weights)
    folder = out or run / "export"
    policy.weights.add(weights)  # so that the manifest names them
    if strength != 1:
        _scale(policy, weights, strength)
    manifest = policy.export(folder, weights=weights)
    if as_json:
        print_json({"folder": str(folder), **asdict(manifest)})
        return
    files = ", ".join(manifest.files)
    if manifest.velocity_error is None:
        typer.echo(f"{folder}: {files}. {manifest.unverified}")
    else:
        typer.echo(f"{folder}: {files}; stock diffusers agrees to {manifest.velocity_error:.1e}")


def _scale(policy: Policy, name: str, strength: float) -> None:
    """Scale a LoRA's change of every layer, B A, by scaling B."""
    from imgrl.policies.lora import LoraWeights

    if not isinstance(policy.weights, LoraWeights):
        raise ConfigError("--strength scales a LoRA, but this run trained all weights (model.train: full)")
    policy.weights.scale(name, strength)
