"""``imgrl eval``: held-out scores under a fixed protocol."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from imgrl.cli.common import AsJson, image_progress, print_json, screen, whole_numbers
from imgrl.cli.models import DeviceName, LoraPath, ModelName, Precision, load_for_sampling
from imgrl.errors import DataError

__all__ = ["app"]

app = typer.Typer(help="Score a model under a fixed protocol.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Score a model under a fixed protocol."""


@app.command("shapes")
def shapes(
    model: ModelName = "tiny-sd3",
    lora: LoraPath = None,
    prompts: Annotated[str, typer.Option(help="A prompt set with GenEval metadata.")] = "world:heldout",
    steps: Annotated[str, typer.Option(help="Sampler steps, one score each.")] = "10,40",
    images_per_prompt: Annotated[int, typer.Option(min=1)] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    guidance: Annotated[float, typer.Option(min=1.0)] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 1234,
    batch: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    probe: Annotated[bool, typer.Option(help="Have the independent check judge the same images.")] = False,
    dtype: Precision = "fp32",
    device: DeviceName = None,
    as_json: AsJson = False,
) -> None:
    """Six-task score of the embedded shape world."""
    from imgrl.data.prompts import load_prompts
    from imgrl.evaluation.protocol import Protocol
    from imgrl.evaluation.shapes import evaluate_shapes

    counts = whole_numbers(steps, "--steps")
    chosen = load_prompts(prompts)[:limit]
    if any("include" not in prompt.columns for prompt in chosen):
        raise DataError(f"{prompts} has prompts without GenEval's column 'include', which eval shapes needs")
    policy = load_for_sampling(model, lora, dtype=dtype, device=device)
    results: dict[str, Any] = {}
    for count in counts:
        protocol = Protocol(
            images_per_prompt=images_per_prompt,
            steps=count,
            guidance=guidance,
            seed=seed,
            weights="current",
            batch=batch,
        )
        with image_progress(f"{count} steps", show=not as_json) as progress:
            results[f"{count} steps"] = evaluate_shapes(
                policy, chosen, protocol, probe=probe, progress=progress
            )
    if as_json:
        print_json(results)
        return
    for name, scores in results.items():
        screen().print(f"{name}: " + "  ".join(f"{key} {value:.3f}" for key, value in scores.items()))
