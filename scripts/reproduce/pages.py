"""What the reproductions on the bundled models share around their numbers: options, table of claims, curves."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["axes_of", "band", "claims", "options", "write"]

_WORDS = {True: "yes", False: "no, the other way round", None: "not separated"}


def options(doc: str | None, name: str) -> argparse.ArgumentParser:
    """``--seeds``, ``--out`` and ``--work`` of the reproduction ``name``."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--seeds", type=seeds, default=5)
    parser.add_argument("--out", type=Path, default=Path("assets/reproductions") / name)
    parser.add_argument("--work", type=Path, default=Path(f"runs/reproduce-{name}"), help="run folders")
    return parser


def seeds(text: str) -> int:
    """A number of seeds that leaves room for an interval."""
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"Expected at least 2 for an interval, got {text}.")
    return int(text)


def claims(questions: Mapping[str, bool | None]) -> list[str]:
    """Rows of a Markdown table; None is a difference whose interval holds 0."""
    return ["", "| claim | here |", "|---|---|", *(f"| {q} | {_WORDS[a]} |" for q, a in questions.items())]


def axes_of(count: int, *, width: float = 4.5) -> tuple[Any, Sequence[Any]]:
    """A figure of panels side by side, drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(width * count, 3.7), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def band(
    axis: Any,
    runs: Sequence[Sequence[Mapping[str, float]]],
    key: str,
    *,
    label: str,
    over: str = "step",
    shaded: bool = True,
) -> None:
    """Mean curve of a number over the seeds, and their range."""
    x = np.array([[point[over] for point in points] for points in runs]).mean(0)
    values = np.array([[point[key] for point in points] for points in runs])
    (line,) = axis.plot(x, values.mean(0), "o-", ms=3, label=label)
    if shaded:
        axis.fill_between(x, values.min(0), values.max(0), alpha=0.15, color=line.get_color())


def write(out: Path, text: str, figure: Any, picture: str) -> None:
    """Table and picture into a folder; the table on screen too."""
    print(text)
    (out / "table.md").write_text(text)
    figure.savefig(out / picture, dpi=80)
