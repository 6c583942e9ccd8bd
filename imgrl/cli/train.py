"""``imgrl train``: the main job."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgrl.cli.common import Arguments, AsJson, interactive, print_json, split_arguments
from imgrl.errors import ConfigError

if TYPE_CHECKING:
    from imgrl.recipe import Recipe
    from imgrl.training.reporting import Reporter, Summary

__all__ = ["new_folder", "run_recipe", "saved_recipe", "train"]


def train(
    arguments: Arguments = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this folder; its recipe is used.", metavar="RUN")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Fine-tune a model with rewards.

    Without arguments: the bundled tiny model on the embedded world, which needs no download. On several GPUs:
    `torchrun --nproc-per-node 8 -m imgrl.cli.main train ...`, or the same with `accelerate launch`. Ctrl-C finishes
    the round, saves and exits with code 130; a second one stops at once.
    """
    recipe = _recipe(arguments, resume)
    summary = run_recipe(recipe, resume=resume is not None, silent=quiet or as_json or not _is_main())
    if as_json and _is_main():
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


def _is_main() -> bool:
    """Whether this is the process that speaks: the first, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _recipe(arguments: list[str] | None, resume: Path | None) -> Recipe:
    from imgrl.config import DEFAULT_RECIPE, resolve
    from imgrl.training.run_folder import holds_results

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    name, overrides = split_arguments(arguments)
    if resume is not None:
        if name is not None:
            raise ConfigError(f"--resume uses the recipe in {resume}, so leave out the recipe {name!r}")
        recipe = resolve(saved_recipe(resume), overrides, processes=processes)
        return replace(recipe, run=replace(recipe.run, dir=str(resume)))
    recipe = resolve(name, overrides, processes=processes)
    if recipe.run.dir is None:
        if processes > 1:
            raise ConfigError(f"run.dir must be given where {processes} processes share one run folder")
        recipe = replace(recipe, run=replace(recipe.run, dir=new_folder(name or DEFAULT_RECIPE)))
    folder = Path(str(recipe.run.dir))
    if holds_results(folder):
        raise ConfigError(
            f"{folder} already holds a run; continue it with `imgrl train --resume {folder}`, "
            "or choose another run.dir"
        )
    return recipe


def new_folder(recipe: str) -> str:
    """Where a run without ``run.dir`` goes: named after its recipe and the time."""
    stem = recipe.removesuffix(".yaml").removeprefix("configs/").strip("./").replace("/", "-")
    return f"runs/{stem}-{datetime.now():%Y%m%d-%H%M%S}"


def saved_recipe(run: Path) -> Path:
    """The recipe that a run folder keeps.

    Raises:
        ConfigError: if there is none.
    """
    saved = run / "config.yaml"
    if not saved.is_file():
        raise ConfigError(f"--resume expects a run folder, but there is no {saved}")
    return saved


def _reporter(*, silent: bool) -> Reporter:
    from imgrl.cli.progress import PlainReporter, RichReporter
    from imgrl.training.reporting import Silent

    if silent:
        return Silent()
    return RichReporter() if interactive() else PlainReporter()
