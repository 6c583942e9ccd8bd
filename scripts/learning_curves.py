r"""Draws what a reward that learns and its policy did to each other: held-out score and the discriminator's accuracy.

    python scripts/learning_curves.py --out curves.png "Adv-GRPO=runs/ga-0,runs/ga-1" "noise as references=runs/noise-0"

Each group is ``label=RUN,RUN``; a run folder's metrics.jsonl says everything. Accuracy is a mean over five rounds,
measured before the discriminator learned from them; 0.5 says that nothing tells the two sides apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

SCORE, ACCURACY = "heldout/shapes", "reward/like/accuracy"
WINDOW = 5


def main() -> None:
    """Read the runs and write the picture."""
    parser = argparse.ArgumentParser(description="Draws runs with a reward that learns.")
    parser.add_argument("groups", nargs="+", help="label=RUN,RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="the only reward is the discriminator's")
    args = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for number, group in enumerate(args.groups):
        label, _, folders = group.partition("=")
        for place, folder in enumerate(folders.split(",")):
            rows = rows_of(Path(folder))
            look: dict[str, Any] = {"color": f"C{number}", "label": label if not place else None}
            axes[0].plot(*curve(rows, SCORE), marker="o", markersize=3, **look)
            axes[1].plot(*smooth(*curve(rows, ACCURACY)), **look)
    axes[0].set(title="held-out score of the rule-based judge", xlabel="round", ylim=(0, 0.8))
    axes[1].set(title="accuracy of the discriminator", xlabel="round", ylim=(0.45, 1))
    axes[1].axhline(0.5, color="grey", linewidth=0.8, linestyle="--")
    axes[0].legend(fontsize=8)
    figure.suptitle(args.title)
    figure.savefig(args.out, dpi=110)


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Rounds and values of a metric where it was measured."""
    there = [row for row in rows if row.get(key) is not None]
    return [row["round"] for row in there], [row[key] for row in there]


def smooth(rounds: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """Means over windows."""
    starts = range(0, len(values) - WINDOW + 1, WINDOW)
    return [rounds[s + WINDOW // 2] for s in starts], [
        statistics.fmean(values[s : s + WINDOW]) for s in starts
    ]


if __name__ == "__main__":
    main()
