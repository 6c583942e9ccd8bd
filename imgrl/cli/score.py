"""``imgrl score``: rewards of pictures that are already there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgrl.cli.common import check_writable, image_progress, screen
from imgrl.errors import ConfigError, RewardError

if TYPE_CHECKING:
    from torch import Tensor

    from imgrl.data.pairs import Pair
    from imgrl.rewards import RewardSet

__all__ = ["score"]


def score(
    images: Annotated[
        Path, typer.Argument(help="A folder; its pictures are taken in the order of their names.")
    ],
    prompts: Annotated[
        Path, typer.Option(help="One prompt a line, or JSON lines with prompt, columns and perhaps file.")
    ],
    reward: Annotated[
        list[str],
        typer.Option(help="A name, file.py:function, or '{use: ..., args: {...}}'; may be repeated."),
    ],
    out: Annotated[
        Path | None, typer.Option("--json", help="JSON file for the scores of every image.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in memory at once, all of one size.")] = 32,
    cache: Annotated[
        Path | None,
        typer.Option(help="File that keeps scores, as scoring.cache does; what it has is not asked again."),
    ] = None,
) -> None:
    """Score a folder of pictures by rewards: a table, and every image's scores as JSON."""
    specs = _specs(reward)
    if out is not None:
        check_writable(out, "--json")
    from imgrl.data.pairs import load_pairs
    from imgrl.rewards import RewardSet

    pairs = load_pairs(images, prompts)
    rewards = RewardSet.from_specs(specs, failure_budget=1.0, cache=cache)
    _check(rewards, pairs)
    with image_progress("images", show=True) as progress:
        values, failed = _score(rewards, pairs, batch, progress)
    summary = {name: _summary(values[name], failed[name], rewards.last_failure.get(name)) for name in specs}
    if out is not None:
        rows = [_row(pair, i, values, failed) for i, pair in enumerate(pairs)]
        out.write_text(
            json.dumps({"rewards": summary, "images": rows}, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
    _print(summary, len(pairs))


def _specs(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name and settings of each ``--reward``."""
    import yaml

    specs: dict[str, dict[str, Any]] = {}
    for text in given:
        settings: Any = {"use": text}
        if text.lstrip().startswith("{"):
            try:
                settings = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ConfigError(f"--reward {text!r} is not valid YAML") from error
        if not isinstance(settings, dict) or not isinstance(settings.get("use"), str):
            raise ConfigError(
                f"--reward {text!r} must say which reward it uses: '{{use: ..., args: {{...}}}}'"
            )
        name = base = settings["use"].rpartition(":")[2]
        number = 1
        while name in specs:
            number += 1
            name = f"{base}-{number}"
        specs[name] = {**settings, "weight": 1.0}
    return specs


def _check(rewards: RewardSet, pairs: Sequence[Pair]) -> None:
    """Refuse what cannot work before anything is scored."""
    for name, reward in rewards.rewards.items():
        if reward.groupwise:
            raise RewardError(
                f"Reward {name!r} compares the images of a group with each other, but imgrl score knows no groups."
            )
    height, width = pairs[0].size
    rewards.check([pair.prompt for pair in pairs], height=height, width=width, cached=True)


def _score(
    rewards: RewardSet, pairs: Sequence[Pair], batch: int, progress: Callable[[int, int], None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every reward's values, NaN where it does not apply or failed, and on which images it failed."""
    import torch

    from imgrl.data.pairs import load_images
    from imgrl.rewards.base import column_names

    values = {name: torch.full((len(pairs),), torch.nan) for name in rewards.rewards}
    failed = {name: torch.zeros(len(pairs), dtype=torch.bool) for name in rewards.rewards}
    columns = column_names(pair.prompt for pair in pairs)
    done = 0
    for rows in _batches([pair.size for pair in pairs], batch):
        loaded = load_images(pairs[row] for row in rows)
        prompts = [pairs[row].prompt for row in rows]
        for name in rewards.rewards:
            values[name][rows], failed[name][rows] = rewards.ask(name, loaded, prompts, columns=columns)
        done += len(rows)
        progress(done, len(pairs))
    return values, failed


def _batches(sizes: Sequence[tuple[int, int]], most: int) -> list[list[int]]:
    """Rows that can be scored together: of one size, at most so many."""
    of_size: dict[tuple[int, int], list[int]] = {}
    for row, size in enumerate(sizes):
        of_size.setdefault(size, []).append(row)
    return [rows[i : i + most] for rows in of_size.values() for i in range(0, len(rows), most)]


def _summary(values: Tensor, failed: Tensor, last: Exception | None) -> dict[str, Any]:
    """Figures over the images to which a reward applies; the spread is the population's."""
    here = values[~values.isnan()].double()
    figures = {
        "mean": here.mean,
        "std": lambda: here.std(unbiased=False),
        "min": here.min,
        "max": here.max,
    }
    return {
        **{key: float(figure()) if len(here) else None for key, figure in figures.items()},
        "applied": len(here),
        "failed": int(failed.sum()),
        "last_failure": None if last is None else str(last),
    }


def _row(pair: Pair, i: int, values: Mapping[str, Tensor], failed: Mapping[str, Tensor]) -> dict[str, Any]:
    scores = {name: None if found[i].isnan() else float(found[i]) for name, found in values.items()}
    names = [name for name, rows in failed.items() if rows[i]]
    return {"file": str(pair.file), "prompt": pair.prompt.text, "scores": scores, "failed": names}


def _print(summary: Mapping[str, Mapping[str, Any]], count: int) -> None:
    from rich.table import Table

    table = Table(title=f"{count} images", title_justify="left")
    table.add_column("reward")
    for column in ("mean", "std", "min", "max", "applied", "failed"):
        table.add_column(column, justify="right")
    for name, figures in summary.items():
        numbers = [figures[key] for key in ("mean", "std", "min", "max")]
        shown = ["-" if number is None else f"{number:.4g}" for number in numbers]
        table.add_row(name, *shown, str(figures["applied"]), str(figures["failed"]))
    screen().print(table)
    for name, figures in summary.items():
        if figures["failed"]:
            screen(stderr=True).print(
                f"{name} failed on {figures['failed']} images, last: {figures['last_failure']}", markup=False
            )
