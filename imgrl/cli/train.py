"""``imgrl train``: the main job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from imgrl.cli.common import Arguments, AsJson, interactive, print_json
from imgrl.cli.runs import Quiet, Resume, is_main, recipe_of_run

if TYPE_CHECKING:
    from imgrl.recipe import Recipe
    from imgrl.training.reporting import Reporter, Summary

__all__ = ["run_recipe", "train"]


def train(
    arguments: Arguments = None,
    resume: Resume = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model with rewards.

    Without arguments: the bundled tiny model on the embedded world, which needs no download. On several GPUs:
    `torchrun --nproc-per-node 8 -m imgrl.cli.main train ...`, or the same with `accelerate launch`. Ctrl-C finishes
    the round, saves and exits with code 130; a second one stops at once.
    """
    from imgrl.config import DEFAULT_RECIPE, resolve

    recipe = recipe_of_run(arguments, resume, resolve=resolve, default=DEFAULT_RECIPE, command="imgrl train")
    summary = run_recipe(recipe, resume=resume is not None, silent=quiet or as_json or not is_main())
    if as_json and is_main():
        print_json(summary.as_dict())
    if summary.interrupted:
        raise typer.Exit(130)


def run_recipe(recipe: Recipe, *, resume: bool, silent: bool) -> Summary:
    """Train to the end or to Ctrl-C, telling of it unless ``silent``."""
    from imgrl.training.image_loop import Trainer

    reporter = _reporter(silent=silent)
    try:
        return Trainer(recipe, reporter=reporter).train(resume=resume)
    finally:
        if callable(close := getattr(reporter, "close", None)):
            close()  # a live display must not outlive an error


def _reporter(*, silent: bool) -> Reporter:
    from imgrl.cli.progress import PlainReporter, RichReporter
    from imgrl.training.reporting import Silent

    if silent:
        return Silent()
    return RichReporter() if interactive() else PlainReporter()
