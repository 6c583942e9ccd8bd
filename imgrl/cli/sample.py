"""``imgrl sample``: pictures from a model, with or without a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgrl.cli.common import AsJson, check_writable, print_json, whole_numbers
from imgrl.cli.models import (
    DeviceName,
    DistilledGuidance,
    LoraPath,
    ModelName,
    Pixels,
    Precision,
    Solver,
    TextLength,
    check_solver,
    load_for_sampling,
    sampling_settings,
)
from imgrl.errors import ConfigError

__all__ = ["sample"]


def sample(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts; each is a row of the grid.")],
    model: ModelName = None,
    lora: LoraPath = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("samples.png"),
    seeds: Annotated[str, typer.Option(help="Columns of the grid, such as 0-3 or 1,5,9.")] = "0-3",
    steps: Annotated[int, typer.Option(min=1)] = 20,
    guidance: Annotated[float, typer.Option(min=1.0, help="Classifier-free guidance; 1 is off.")] = 1.0,
    negative: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    solver: Solver = "euler",
    height: Pixels = None,
    width: Pixels = None,
    max_sequence_length: TextLength = None,
    distilled_guidance: DistilledGuidance = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a forward pass.")] = None,
    dtype: Precision = "fp32",
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Write a grid of samples: one row a prompt, one column a seed; at the text length and size of the LoRA's run."""
    columns, rule = whole_numbers(seeds, "--seeds"), check_solver(solver)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out must end in .png, but {str(out)!r} was given")
    check_writable(out, "--out")
    settings = sampling_settings(
        model,
        lora,
        dtype=dtype,
        height=height,
        width=width,
        max_sequence_length=max_sequence_length,
        distilled_guidance=distilled_guidance,
    )
    policy = load_for_sampling(settings, lora, device=device)
    latents = policy.sample(
        policy.encode([prompt for prompt in prompts for _ in columns]),
        columns * len(prompts),
        steps=steps,
        weights="current",
        guidance=guidance,
        negative=policy.encode([negative]) if guidance > 1 else None,
        solver=rule,
        height=settings.height,
        width=settings.width,
        batch=batch,
    )
    from imgrl.evaluation.grid import save_grid

    save_grid(policy.decode(latents, batch=batch), out, columns=len(columns))
    if as_json:
        print_json({"file": str(out), "prompts": prompts, "seeds": columns})
    else:
        typer.echo(str(out))
