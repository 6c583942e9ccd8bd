"""What the commands that train share: their options, their run folder and the recipe a run starts from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from imgrl.cli.common import split_arguments
from imgrl.errors import ConfigError
from imgrl.training.launch import processes

__all__ = [
    "Quiet",
    "Resume",
    "is_main",
    "new_folder",
    "recipe_of_run",
    "refuse_results",
    "saved_recipe",
]

Resume = Annotated[
    Path | None, typer.Option(help="Continue the run in this folder; its recipe is used.", metavar="RUN")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def is_main() -> bool:
    """Whether this is the process that speaks: the first, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def recipe_of_run(
    arguments: list[str] | None,
    resume: Path | None,
    *,
    resolve: Callable[..., Any],
    default: str,
    command: str,
) -> Any:
    """The checked recipe of a run, new or resumed, with its folder set.

    Args:
        arguments: a recipe and overrides, as typed.
        resume: the run to go on with, if any.
        resolve: reads and checks a recipe: ``resolve(name, overrides, processes=...)``.
        default: the recipe where none is named.
        command: how the user calls this, for messages.

    Raises:
        ConfigError: in one sentence, for anything that cannot run exactly as written.
    """
    name, overrides = split_arguments(arguments)
    if resume is not None:
        if name is not None:
            raise ConfigError(f"--resume uses the recipe in {resume}, so leave out the recipe {name!r}")
        if any(override.startswith("run.dir=") for override in overrides):
            raise ConfigError(f"--resume goes on in {resume} itself, so leave run.dir out")
        recipe = resolve(saved_recipe(resume), overrides, processes=processes())
        return replace(recipe, run=replace(recipe.run, dir=str(resume)))
    recipe = resolve(name, overrides, processes=processes())
    if recipe.run.dir is None:
        if processes() > 1:
            raise ConfigError(f"run.dir must be given where {processes()} processes share one run folder")
        recipe = replace(recipe, run=replace(recipe.run, dir=new_folder(name or default)))
    refuse_results(Path(recipe.run.dir), command)
    return recipe


def refuse_results(folder: Path, command: str) -> None:
    """Never write over a run.

    Raises:
        ConfigError: if the folder holds one.
    """
    from imgrl.training.run_folder import holds_results

    if holds_results(folder):
        raise ConfigError(
            f"{folder} already holds a run; continue it with `{command} --resume {folder}`, "
            "or choose another run.dir"
        )


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
