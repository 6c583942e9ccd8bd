"""What several commands share: arguments, output, devices."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgrl.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

__all__ = [
    "Arguments",
    "AsJson",
    "check_writable",
    "choose_device",
    "image_progress",
    "interactive",
    "print_json",
    "screen",
    "split_arguments",
    "whole_numbers",
]

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A YAML file or bundled recipe (default: tiny-sd3/crd), then overrides like objective.beta=0.5.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def split_arguments(arguments: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Tell the recipe from the overrides: an override has ``=`` and is no file.

    Raises:
        ConfigError: if there are two recipes.
    """
    recipes = [text for text in arguments or () if "=" not in text or Path(text).is_file()]
    if len(recipes) > 1:
        raise ConfigError(
            f"one recipe is expected, but {recipes[0]!r} and {recipes[1]!r} were given; "
            "overrides are key=value"
        )
    return (recipes[0] if recipes else None), [text for text in arguments or () if text not in recipes]


def whole_numbers(text: str, option: str) -> list[int]:
    """Read ``0,3,8-11`` as whole numbers.

    Raises:
        ConfigError: if it is something else.
    """
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            numbers.extend(range(int(first), int(last or first) + 1) if dash else [int(first)])
    except ValueError:
        numbers = []
    if not numbers:
        raise ConfigError(f"{option} must be whole numbers such as 0,3,8-11, but {text!r} was given")
    return numbers


def interactive() -> bool:
    """Whether a person watches: both outputs are a terminal and no CI is named."""
    return sys.stdout.isatty() and sys.stderr.isatty() and not os.environ.get("CI")


def screen(*, stderr: bool = False) -> Console:
    """Return a rich console; wide and without colour where nobody watches, so that lines stay whole."""
    from rich.console import Console

    if interactive():
        return Console(stderr=stderr, highlight=False)
    return Console(stderr=stderr, highlight=False, width=160, color_system=None)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=False, default=str))


def check_writable(out: Path, option: str) -> None:
    """Refuse a bad place for a file before minutes of work.

    Raises:
        ConfigError: naming the option.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab"):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {out} cannot be written: {error.strerror or error}") from error


def choose_device(name: str | None) -> torch.device:
    """Return the named device, or the first accelerator there is, or the CPU.

    Raises:
        ConfigError: if the named one does not exist here.
    """
    import torch

    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


@contextmanager
def image_progress(label: str, *, show: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback ``(done, total)`` that moves a bar on stderr, drawn only where somebody watches."""
    from rich.progress import Progress

    with Progress(console=screen(stderr=True), transient=True, disable=not (show and interactive())) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
