"""``imgrl eval``: held-out scores under a fixed protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgrl.cli.common import AsJson, image_progress, print_json, screen, whole_numbers
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
from imgrl.errors import DataError

if TYPE_CHECKING:
    from imgrl.evaluation.protocol import Protocol
    from imgrl.policies import Policy
    from imgrl.types import Prompt

__all__ = ["app"]

app = typer.Typer(help="Score a model under a fixed protocol.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Score a model under a fixed protocol."""


@app.command("shapes")
def shapes(
    model: ModelName = None,
    lora: LoraPath = None,
    prompts: Annotated[str, typer.Option(help="A prompt set with GenEval metadata.")] = "world:heldout",
    steps: Annotated[str, typer.Option(help="Sampler steps, one score each.")] = "10,40",
    images_per_prompt: Annotated[int, typer.Option(min=1)] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    guidance: Annotated[float, typer.Option(min=1.0)] = 1.0,
    solver: Solver = "euler",
    height: Pixels = None,
    width: Pixels = None,
    max_sequence_length: TextLength = None,
    distilled_guidance: DistilledGuidance = None,
    seed: Annotated[int, typer.Option(min=0)] = 1234,
    batch: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    probe: Annotated[bool, typer.Option(help="Have the independent check judge the same images.")] = False,
    dtype: Precision = "fp32",
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Six-task score of the embedded shape world, at the text length and size of the LoRA's run."""
    from imgrl.evaluation.protocol import Protocol

    counts = whole_numbers(steps, "--steps")
    settings = sampling_settings(
        model,
        lora,
        dtype=dtype,
        height=height,
        width=width,
        max_sequence_length=max_sequence_length,
        distilled_guidance=distilled_guidance,
    )
    protocol = Protocol(
        images_per_prompt=images_per_prompt,
        guidance=guidance,
        seed=seed,
        solver=check_solver(solver),
        weights="current",
        batch=batch,
        height=settings.height,
        width=settings.width,
    )
    chosen = _judgeable(prompts, limit)
    policy = load_for_sampling(settings, lora, device=device)
    results = _scores(policy, chosen, protocol, counts, probe=probe, show=not as_json)
    if as_json:
        print_json(results)
        return
    for name, scores in results.items():
        screen().print(f"{name}: " + "  ".join(f"{key} {value:.3f}" for key, value in scores.items()))


def _judgeable(source: str, limit: int | None) -> list[Prompt]:
    """The first prompts of a set, refused if the judge could not tell what they ask for."""
    from imgrl.data.prompts import load_prompts

    chosen = load_prompts(source)[:limit]
    if any("include" not in prompt.columns for prompt in chosen):
        raise DataError(f"{source} has prompts without GenEval's column 'include', which eval shapes needs")
    return chosen


def _scores(
    policy: Policy,
    prompts: Sequence[Prompt],
    protocol: Protocol,
    counts: Sequence[int],
    *,
    probe: bool,
    show: bool,
) -> dict[str, Any]:
    """The figures at each number of steps."""
    from dataclasses import replace

    from imgrl.evaluation.shapes import evaluate_shapes

    results: dict[str, Any] = {}
    for count in counts:
        with image_progress(f"{count} steps", show=show) as progress:
            results[f"{count} steps"] = evaluate_shapes(
                policy, prompts, replace(protocol, steps=count), probe=probe, progress=progress
            )
    return results
