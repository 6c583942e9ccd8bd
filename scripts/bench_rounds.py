"""What a training round costs as it grows, and whether memory grows with the number of rounds.

    python scripts/bench_rounds.py                        # the tiny model on a CPU
    python scripts/bench_rounds.py --json assets/benchmarks/rounds.json model.dtype=bf16

Trains the recipe for a few rounds at each size of groups x group size x noise levels and prints the seconds of a round,
the microseconds a trained point (an image at a noise level) and the share spent in the network, the autoencoder and the
reward; then a longer run of the smallest size and its memory. Other arguments are recipe overrides.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from imgrl.config import resolve
from imgrl.training.image_loop import Trainer
from imgrl.training.phases import BESIDE_TRAINING, NETWORK
from imgrl.training.reporting import Silent

SIZES = ((6, 6, 2), (12, 6, 2), (6, 12, 2), (12, 12, 1), (12, 12, 2), (12, 12, 4), (24, 12, 2))
"""Groups, images a group, noise levels."""


class Rows(Silent):
    """Keeps the metrics of every round, and how much memory the process held after it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def round_end(self, round: int, metrics: Mapping[str, float]) -> None:
        """Keep a round."""
        self.rows.append({**metrics, "mebibytes": resident_mebibytes()})


def resident_mebibytes() -> float:
    """Memory this process holds now, or, where the system does not say, the most it ever held."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def train(recipe: str, overrides: list[str], *, rounds: int) -> list[dict[str, float]]:
    """Metrics of each round of a run without evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = [f"run.dir={folder}/run", f"run.rounds={rounds}", "run.minutes=null", "checkpoint.every=0"]
        quiet += ["evaluation.every=0", "evaluation.limit=1", "evaluation.steps=[1]", "evaluation.grid=0"]
        rows = Rows()
        Trainer(resolve(recipe, [*overrides, *quiet]), reporter=rows).train()
    return rows.rows


def cost(rows: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds of a round, by phase and in all, the first round left out."""
    names = {key.removeprefix("seconds/") for row in rows for key in row if key.startswith("seconds/")}
    median = {
        name: statistics.median(
            after.get(f"seconds/{name}", 0.0) - before.get(f"seconds/{name}", 0.0)
            for before, after in pairwise(rows)
        )
        for name in names - set(BESIDE_TRAINING)
    }
    round_seconds = statistics.median(60 * (b["minutes"] - a["minutes"]) for a, b in pairwise(rows))
    first, last = rows[0], rows[-1]
    network = sum(last[f"seconds/{name}"] - first[f"seconds/{name}"] for name in NETWORK)
    share = network / (60 * (last["minutes"] - first["minutes"]))
    return median | {"round": round_seconds, "network_share": share}


def by_size(recipe: str, overrides: list[str], *, rounds: int) -> list[dict[str, Any]]:
    """The cost of a round at every size; micro-batches hold six groups throughout."""
    table = []
    for groups, group_size, levels in SIZES:
        size = [f"batch.groups={groups}", f"batch.group_size={group_size}", "batch.micro_groups=6"]
        found = cost(train(recipe, [*overrides, *size, f"objective.times.count={levels}"], rounds=rounds))
        points = groups * group_size * levels
        row = {"groups": groups, "group_size": group_size, "levels": levels, "points": points, **found}
        row["update_us_per_point"] = 1e6 * row["update"] / points
        row["sampling_us_per_image"] = (
            1e6 * (row["rollout"] + row["decode"] + row["reward"]) * levels / points
        )
        table.append(row)
    return table


def main() -> None:
    """Measure, print, and write the figures if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="key=value of the recipe")
    parser.add_argument("--recipe", default="tiny-sd3/crd")
    parser.add_argument("--rounds", type=int, default=4, help="rounds at each size, the first not counted")
    parser.add_argument("--long", type=int, default=40, help="rounds of the run whose memory is watched")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    sizes = by_size(args.recipe, args.overrides, rounds=args.rounds)
    small = ["batch.groups=6", "batch.group_size=6", "batch.micro_groups=6"]
    memory = [row["mebibytes"] for row in train(args.recipe, [*args.overrides, *small], rounds=args.long)]
    show(sizes, memory)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"sizes": sizes, "mebibytes_by_round": memory}, indent=1) + "\n")


def show(sizes: list[dict[str, Any]], memory: list[float]) -> None:
    """Print both tables."""
    from rich.console import Console
    from rich.table import Table

    table = Table("groups", "images", "levels", "round, s", "update, us/point", "sampling, us/image", "share")
    for row in sizes:
        table.add_row(
            str(row["groups"]),
            str(row["groups"] * row["group_size"]),
            str(row["levels"]),
            f"{row['round']:.2f}",
            f"{row['update_us_per_point']:.0f}",
            f"{row['sampling_us_per_image']:.0f}",
            f"{row['network_share']:.1%}",
        )
    console = Console()
    console.print(table)
    tenth = min(10, len(memory))
    console.print(
        f"memory after round {tenth}: {memory[tenth - 1]:.0f} MiB; after round {len(memory)}: {memory[-1]:.0f} MiB"
    )


if __name__ == "__main__":
    main()
