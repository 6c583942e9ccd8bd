"""What a language objective's loss costs: CPU seconds and peak memory of forward and backward, against TRL's.

    python scripts/bench_text.py                                   # [8, 512, 32k] on a CPU, half an hour
    python scripts/bench_text.py --only grpo                       # GRPO's rows and TRL's; 8k, 32k and 128k logits
    python scripts/bench_text.py --small --only hidden             # a quick look at some rows
    python scripts/bench_text.py --json assets/benchmarks/text-losses.json

Every row runs in a process of its own: it makes its inputs, notes the memory it holds, runs the loss and its gradient
once to warm up and then ``--repeats`` times, and reports the fewest CPU seconds (what other processes take meanwhile
does not count) and the peak beyond the inputs. The gradient of the logits, or of hidden states and output matrix, is
part of that peak; from hidden states the product with the output matrix is part of the cost. A ratio compares with
the row of TRL on the same inputs that ``versus`` names.

Rows are added in ``bench_text_rows.py``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_text_rows import ROWS, SMALL, Inputs, Row, Size


def measure(row: Row, size: Size, repeats: int) -> dict[str, float]:
    """Fewest CPU seconds, and peak MiB beyond the inputs, in this process."""
    import trl.kernels
    import trl.trainer.distillation_trainer
    import trl.trainer.grpo_trainer
    import trl.trainer.utils  # noqa: F401  before the inputs, so that no import counts as the loss's memory

    inputs = Inputs(size, row)
    before = resident()
    seconds: list[float] = []
    for _ in range(1 + repeats):
        start = time.process_time()
        torch.autograd.grad(row.loss(inputs), inputs.leaves)
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    held = sum(leaf.numel() * leaf.element_size() for leaf in inputs.leaves) / 2**20
    return {"seconds": min(seconds[1:]), "peak_mib": peak - before, "gradient_mib": held}


def resident() -> float:
    """MiB this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def in_own_process(name: str, size: Size, repeats: int) -> dict[str, float]:
    """``measure`` in a fresh process, whose peak is this row's alone."""
    command = [
        sys.executable,
        __file__,
        "--row",
        name,
        "--repeats",
        str(repeats),
        "--size",
        json.dumps(asdict(size)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"Row {name!r} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(results: dict[str, dict[str, float]], size: Size) -> None:
    """The table, with ratios where the compared row was run too."""
    from rich.console import Console
    from rich.table import Table

    title = f"forward and backward, [{size.n}, {size.t}, {size.v}] float32, width {size.h} from hidden states"
    table = Table("loss", "CPU seconds", "peak MiB", "versus", "time ratio", "memory ratio", title=title)
    for name, cost in results.items():
        versus = ROWS[name].versus or ""
        ratios = [f"{cost[key]:.2f}" for key in ("time_ratio", "memory_ratio") if key in cost] or ["", ""]
        table.add_row(name, f"{cost['seconds']:.2f}", f"{cost['peak_mib']:.0f}", versus, *ratios)
    Console(width=110).print(table)


def with_ratios(results: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Each row's cost over that of the row it is compared with, where that was run."""
    for name, cost in results.items():
        other = results.get(ROWS[name].versus or "")
        if other is not None:
            cost["time_ratio"] = cost["seconds"] / other["seconds"]
            cost["memory_ratio"] = cost["peak_mib"] / other["peak_mib"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--small", action="store_true", help="small tensors: a check that all rows run")
    parser.add_argument(
        "--only", default="", help="rows whose name contains this, and those they compare with"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where results are written, with date and machine")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--size", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(ROWS[args.row], Size(**json.loads(args.size)), args.repeats)))
        return
    size = SMALL if args.small else Size()
    chosen = {name for name in ROWS if args.only in name}
    chosen |= {versus for name in chosen if (versus := ROWS[name].versus)}
    results: dict[str, dict[str, float]] = {}
    for name in (name for name in ROWS if name in chosen):
        results[name] = in_own_process(name, size, args.repeats)
        print(f"{name}: {results[name]['seconds']:.2f} s, {results[name]['peak_mib']:.0f} MiB", flush=True)
    report(with_ratios(results), size)
    if args.json:
        args.json.write_text(
            json.dumps({**machine(), "size": asdict(size), "rows": results}, indent=1) + "\n"
        )


def machine() -> dict[str, Any]:
    """When and on what."""
    import trl

    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{len(os.sched_getaffinity(0))} CPU core(s), {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "trl": trl.__version__,
    }


if __name__ == "__main__":
    main()
