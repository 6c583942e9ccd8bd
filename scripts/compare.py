r"""Trains several recipes with several seeds, one after another, and draws their held-out curves.

    python scripts/compare.py --out assets/benchmarks/crd-nft --seeds 0,1,2 \
        crd=tiny-sd3/crd nft=tiny-sd3/nft "no anchor=tiny-sd3/crd objective.anchor.weight=0"

Each run is ``label=recipe [key=value ...]``. Finished runs are kept, an unfinished one is resumed, so the command can
be repeated after an interruption.
Writes ``table.md``, ``curves.json`` and ``curves.png``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SCORE, DIVERSITY, NORM = "heldout/shapes", "heldout/diversity", "heldout/velocity_norm"


def main() -> None:
    """Train what is missing, then tabulate and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="label=recipe [key=value ...]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--score", default=SCORE, help="the metric to draw")
    parser.add_argument("--work", type=Path, default=Path("runs/compare"), help="where the run folders lie")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    results: dict[str, list[list[dict[str, Any]]]] = {}
    for entry in args.runs:
        label, _, command = entry.partition("=")
        folders = [args.work / f"{label.replace(' ', '-')}-{seed}" for seed in seeds]
        for seed, folder in zip(seeds, folders, strict=True):
            train(command.split(), folder, seed)
        results[label] = [read(folder) for folder in folders]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(table(results, args.score))
    (args.out / "curves.json").write_text(json.dumps(curves(results, args.score), indent=1) + "\n")
    draw(results, args.score, args.out / "curves.png")
    print(table(results, args.score))


def train(command: list[str], folder: Path, seed: int) -> None:
    """Start, resume or skip one run."""
    if (folder / "summary.json").exists() and not json.loads((folder / "summary.json").read_text())[
        "interrupted"
    ]:
        return
    program = [sys.executable, "-m", "imgrl.cli.main", "train"]
    if (folder / "checkpoints").is_dir():
        subprocess.run([*program, "--resume", str(folder)], check=True)
    else:
        subprocess.run([*program, *command, f"run.seed={seed}", f"run.dir={folder}"], check=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run in which something was evaluated."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, Any] = {"minutes": 0.0, "images": 0.0}
    found = []
    for row in rows:
        last |= {key: row[key] for key in last if key in row}
        if SCORE in row or any(key.startswith("heldout/") for key in row):
            found.append(last | row)
    return found


def curves(results: dict[str, list[list[dict[str, Any]]]], score: str) -> dict[str, Any]:
    """What the picture shows, as numbers."""
    return {
        label: [[{key: row[key] for key in ("minutes", "images", score)} for row in run] for run in runs]
        for label, runs in results.items()
    }


def table(results: dict[str, list[list[dict[str, Any]]]], score: str) -> str:
    """Markdown: before, after and drift of each run, mean and range over seeds."""
    lines = [
        f"| run | {score} before | after: mean (range) | gain | minutes | images | diversity | velocity norm |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, runs in results.items():
        before = statistics.mean(run[0][score] for run in runs)
        after = [run[-1][score] for run in runs]
        lines.append(
            f"| {label} | {before:.3f} | {statistics.mean(after):.3f} ({min(after):.3f} to {max(after):.3f}) "
            f"| {statistics.mean(after) - before:+.3f} | {average(runs, 'minutes'):.1f} "
            f"| {average(runs, 'images'):.0f} | {average(runs, DIVERSITY):.3f} | {average(runs, NORM):.3f} |"
        )
    return "\n".join(lines) + "\n"


def average(runs: list[list[dict[str, Any]]], key: str) -> float:
    """Mean over seeds of the last value of a metric."""
    return statistics.mean(run[-1].get(key, float("nan")) for run in runs)


def draw(results: dict[str, list[list[dict[str, Any]]]], score: str, file: Path) -> None:
    """Curves against images and against minutes; one line a seed, one colour a run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, x in zip(axes, ("images", "minutes"), strict=True):
        for index, (label, runs) in enumerate(results.items()):
            for number, run in enumerate(runs):
                points = [(row[x], row[score]) for row in run]
                axis.plot(
                    *zip(*points, strict=True),
                    color=f"C{index}",
                    alpha=0.8,
                    label=label if not number else None,
                )
        axis.set_xlabel({"images": "training images", "minutes": "training minutes"}[x])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(score)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
