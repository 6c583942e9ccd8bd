r"""Trains several recipes with several seeds, one after another, and draws their held-out curves.

    python scripts/compare.py --out assets/benchmarks/crd-nft --seeds 0,1,2 \
        crd=tiny-sd3/crd nft=tiny-sd3/nft "no anchor=tiny-sd3/crd objective.anchor.weight=0"

Each run is ``label=recipe [key=value ...]``. Finished runs are kept, an unfinished one is resumed, so the command can
be repeated after an interruption. ``--jobs 2`` trains two at a time, each on its own share of the CPU cores.
``--probe`` has the independent check judge finished runs too.
Writes ``table.md``, ``curves.json`` and ``curves.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROBED, PROBE = "probe.json", "probe/shapes"
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
    parser.add_argument(
        "--probe", action="store_true", help="judge finished runs by the independent check too"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    runs = dict(entry.split("=", 1) for entry in args.runs)
    folders = {
        (label, seed): args.work / f"{label.replace(' ', '-')}-{seed}" for seed in seeds for label in runs
    }
    shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    cores = sorted(os.sched_getaffinity(0)) if args.jobs > 1 else []
    if len(cores) < args.jobs > 1:
        raise SystemExit(f"--jobs {args.jobs} needs as many CPU cores, found {len(cores)}.")
    for job in range(args.jobs):
        shares.put(cores[job :: args.jobs])
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [
            pool.submit(train, runs[label].split(), folder, seed, shares, probe=args.probe)
            for (label, seed), folder in folders.items()
        ]
        for job in jobs:
            job.result()
    results = {label: [read(folders[label, seed]) for seed in seeds] for label in runs}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(table(results, args.score))
    (args.out / "curves.json").write_text(json.dumps(curves(results, args.score), indent=1) + "\n")
    draw(results, args.score, args.out / "curves.png")
    print(table(results, args.score))


def train(
    command: list[str], folder: Path, seed: int, shares: queue.SimpleQueue[list[int]], *, probe: bool
) -> None:
    """Start, resume or skip one run, on one of the shares of the cores (an empty one means all)."""
    cores = shares.get()
    try:
        if not finished(folder):
            if (folder / "checkpoints").is_dir():
                imgrl("train", "--resume", str(folder), cores=cores)
            else:
                imgrl("train", *command, f"run.seed={seed}", f"run.dir={folder}", cores=cores)
        if probe and not (folder / PROBED).exists():
            judged = imgrl(
                *("eval", "shapes", "--probe", "--steps", "10", "--lora", str(folder / "lora"), "--json"),
                cores=cores,
                read=True,
            )
            (folder / PROBED).write_text(judged)
    finally:
        shares.put(cores)


def finished(folder: Path) -> bool:
    """Whether the run in a folder has come to its end."""
    file = folder / "summary.json"
    return file.exists() and not json.loads(file.read_text())["interrupted"]


def imgrl(*arguments: str, cores: list[int], read: bool = False) -> str:
    """Run an imgrl command on some cores; returns what it printed if that is to be read."""
    program, environment = [sys.executable, "-m", "imgrl.cli.main", *arguments], dict(os.environ)
    if cores:
        program = ["taskset", "-c", ",".join(map(str, cores)), *program]
        environment["OMP_NUM_THREADS"] = str(len(cores))
    done = subprocess.run(
        program, check=True, env=environment, stdout=subprocess.PIPE if read else None, text=True
    )
    return done.stdout or ""


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run in which something was evaluated."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, Any] = {"minutes": 0.0, "images": 0.0}
    found = []
    for row in rows:
        last |= {key: row[key] for key in last if key in row}
        if SCORE in row or any(key.startswith("heldout/") for key in row):
            found.append(last | row)
    if (folder / PROBED).exists():
        found[-1][PROBE] = json.loads((folder / PROBED).read_text())["10 steps"][PROBE]
    return found


def curves(results: dict[str, list[list[dict[str, Any]]]], score: str) -> dict[str, Any]:
    """What the picture shows, as numbers."""
    return {
        label: [
            [
                {key: row[key] for key in ("minutes", "images", score, PROBE, DIVERSITY, NORM) if key in row}
                for row in run
            ]
            for run in runs
        ]
        for label, runs in results.items()
    }


def table(results: dict[str, list[list[dict[str, Any]]]], score: str) -> str:
    """Markdown: before, after and drift of each run, mean and range over seeds."""
    lines = [
        f"| run | {score} before | after: mean (range) | gain | independent probe | minutes | images | diversity "
        "| velocity norm |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, runs in results.items():
        before = statistics.mean(run[0][score] for run in runs)
        after = [run[-1][score] for run in runs]
        lines.append(
            f"| {label} | {before:.3f} | {statistics.mean(after):.3f} ({min(after):.3f} to {max(after):.3f}) "
            f"| {statistics.mean(after) - before:+.3f} | {average(runs, PROBE)} | {average(runs, 'minutes', '.1f')} "
            f"| {average(runs, 'images', '.0f')} | {average(runs, DIVERSITY)} | {average(runs, NORM)} |"
        )
    return "\n".join(lines) + "\n"


def average(runs: list[list[dict[str, Any]]], key: str, digits: str = ".3f") -> str:
    """Mean over seeds of the last value of a metric, if every run has one."""
    found = [run[-1][key] for run in runs if key in run[-1]]
    return format(statistics.mean(found), digits) if len(found) == len(runs) else "not run"


def draw(results: dict[str, list[list[dict[str, Any]]]], score: str, file: Path) -> None:
    """The score against images and minutes, and how far it has gone for it; one line a seed, one colour a run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("images", score), ("minutes", score), ("minutes", DIVERSITY), ("minutes", NORM)]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for axis, (x, y) in zip(axes.flat, panels, strict=True):
        for index, (label, runs) in enumerate(results.items()):
            for number, run in enumerate(runs):
                points = [(row[x], row[y]) for row in run if y in row]
                name = label if not number else None
                axis.plot(*zip(*points, strict=True), color=f"C{index}", alpha=0.8, label=name)
        axis.set_xlabel(f"training {x}")
        axis.set_ylabel(y)
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
