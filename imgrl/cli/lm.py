"""``imgrl lm``: post-train language models."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from imgrl.cli.common import AsJson, print_json
from imgrl.cli.runs import Quiet, Resume, is_main, recipe_of_run
from imgrl.errors import ConfigError

__all__ = ["app", "require_trl"]

app = typer.Typer(
    help="Post-train language models: the same anchors and objectives, on TRL.", no_args_is_help=True
)

TextArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A YAML file or bundled recipe (default: tiny-lm/grpo), then overrides like objective.kl_weight=0.01.",
        show_default=False,
    ),
]


@app.command()
def train(
    arguments: TextArguments = None,
    resume: Resume = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    r"""Post-train a language model.

    Without arguments: the bundled tiny model on arithmetic that can be checked, which needs no download. Needs TRL:
    `pip install 'imgrl\[lm]'`. Ctrl-C finishes the step, saves and exits with code 130.
    """
    require_trl("imgrl lm train")
    from imgrl.config.text import DEFAULT_TEXT_RECIPE, resolve_text
    from imgrl.training.text.session import TextSession

    recipe = recipe_of_run(
        arguments, resume, resolve=resolve_text, default=DEFAULT_TEXT_RECIPE, command="imgrl lm train"
    )
    silent = quiet or as_json
    session = TextSession(recipe, tell=(lambda _: None) if silent else typer.echo)
    summary = session.train(resume=resume is not None)
    if as_json and is_main():
        print_json(summary.as_dict())
    elif not silent and is_main():
        typer.echo(f"everything is in {summary.run_dir}")
    if summary.interrupted:
        raise typer.Exit(130)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Option(help="A transformers folder, hub name or bundled model.")] = "tiny-lm",
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Overrides of evaluation, such as evaluation.samples=8."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pass@1 of a model on held-out problems, by the protocol of training runs."""
    import torch

    from imgrl.config.text import resolve_text
    from imgrl.training.text.heldout import HeldOut
    from imgrl.training.text.models import load_model

    recipe = resolve_text(None, arguments or ())
    if recipe.evaluation.kl:
        raise ConfigError(
            "evaluation.kl compares with the model before training, which imgrl lm eval has not; leave it out"
        )
    network, tokenizer = load_model(replace(recipe.model, path=model))
    heldout = HeldOut(recipe.evaluation, tokenizer, max_tokens=recipe.generation.max_tokens)
    heldout.require_room(network)
    scores = heldout(network.to("cuda" if torch.cuda.is_available() else "cpu"))  # as training has it
    if as_json:
        print_json(scores)
    else:
        typer.echo("  ".join(f"{name} {value:.3f}" for name, value in scores.items()))


def require_trl(command: str) -> None:
    """Say what is not installed, before anything else fails for it.

    Raises:
        ConfigError: naming the extra.
    """
    import importlib.util

    missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{command} needs {' and '.join(missing)}: run `pip install 'imgrl[lm]'`")
