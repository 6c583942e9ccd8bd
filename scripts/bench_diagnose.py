"""Minutes and memory of `imgrl diagnose` on a pair of checkpoints as large as is asked for, made of random weights.

    python scripts/bench_diagnose.py --layers 1 --width 512 --inner 1024 --vocabulary 4096    # a look, seconds
    python scripts/bench_diagnose.py --json assets/benchmarks/diagnose.json    # 2.5 billion, 10 GB of disk

The default shapes are those of Gemma 2B as published: 18 layers of width 2048 with one key-value head, 16384 inside the
MLP, 256000 tokens, 2.5 billion parameters. Both folders are sharded bfloat16 safetensors with an index, a shard a
layer, written a few rows at a time and deleted at the end; the tuned one is the base with Gaussian steps of 3e-5. The
diagnosis runs in a process of its own, whose peak is compared with twice the bytes of the largest matrix: once as
it is and once without what Python and the libraries held before the first byte was read.
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
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file

STEP, DEVIATION = 3e-5, 0.02
HEAD = 256  # width of an attention head
ENTRIES = 1 << 22  # drawn at once


def main() -> None:
    """Make the pair, diagnose it, print."""
    options = arguments()
    if options.child is not None:
        print(json.dumps(diagnose([*options.child], options.threads)))
        return
    with tempfile.TemporaryDirectory(dir=options.work, prefix="diagnose-") as folder:
        places = [Path(folder) / name for name in ("base", "tuned")]
        began = time.monotonic()
        shapes = make_pair(places, options)
        made = time.monotonic() - began
        found = in_own_process(places, options)
    parameters = sum(rows * columns for part in shapes.values() for rows, columns in part.values())
    largest = max(rows * columns for part in shapes.values() for rows, columns in part.values())
    result = {
        "date": datetime.date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "torch": torch.__version__,
        "parameters": parameters,
        "writing_minutes": made / 60,
        **found,
        "largest_matrix_mib": 2 * largest / 2**20,
    }
    report(result)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """What to make and where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=16384, help="width inside the MLP")
    parser.add_argument("--vocabulary", type=int, default=256_000)
    parser.add_argument("--exact", action="store_true", help="whole spectra, as --exact of the command")
    parser.add_argument("--no-control", action="store_true", help="without noise of the update's size")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, help="folder with room for four bytes a parameter")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.layers, options.width, options.inner, options.vocabulary) < 1:
        parser.error("layers, width, inner and vocabulary must be at least 1")
    return options


def shards(options: argparse.Namespace) -> dict[str, dict[str, tuple[int, int]]]:
    """Matrices of each shard by name, as [out, in]."""
    width, inner = options.width, options.inner
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (min(HEAD, width), width),
        "self_attn.v_proj": (min(HEAD, width), width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    parts = [{"model.embed_tokens.weight": (options.vocabulary, width)}]
    parts += [{f"model.layers.{i}.{k}.weight": v for k, v in shapes.items()} for i in range(options.layers)]
    count = len(parts)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": part for i, part in enumerate(parts, 1)}


def make_pair(places: list[Path], options: argparse.Namespace) -> dict[str, dict[str, tuple[int, int]]]:
    """Write base and tuned together, a block of rows at a time."""
    parts = shards(options)
    generator = torch.Generator().manual_seed(0)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    for place in places:
        place.mkdir()
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
    for file, part in parts.items():
        header = safetensors_header(part)
        with (places[0] / file).open("wb") as base, (places[1] / file).open("wb") as tuned:
            for stream in (base, tuned):
                stream.write(len(header).to_bytes(8, "little") + header)
            for shape in part.values():
                for before, after in blocks(shape, generator):
                    base.write(raw(before))
                    tuned.write(raw(after))
    return parts


def safetensors_header(part: dict[str, tuple[int, int]]) -> bytes:
    """The JSON in front of a file of bfloat16 matrices, padded to eight bytes."""
    entries, start = {}, 0
    for name, shape in part.items():
        end = start + 2 * shape[0] * shape[1]
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)


def blocks(shape: tuple[int, int], generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of a random matrix before and after a step, in bfloat16."""
    rows = max(1, ENTRIES // shape[1])
    for start in range(0, shape[0], rows):
        size = (min(rows, shape[0] - start), shape[1])
        before = (DEVIATION * torch.randn(size, generator=generator)).bfloat16()
        yield before, (before.float() + STEP * torch.randn(size, generator=generator)).bfloat16()


def raw(tensor: torch.Tensor) -> bytes:
    """A bfloat16 tensor's bytes; numpy has no such type."""
    return tensor.view(torch.int16).numpy().tobytes()


def in_own_process(places: list[Path], options: argparse.Namespace) -> dict[str, float]:
    """``diagnose`` in a fresh process, whose peak is its alone."""
    flags = [*(["--exact"] if options.exact else []), *(["--no-control"] if options.no_control else [])]
    words = [str(places[0]), str(places[1]), *(flag.replace("--", "+") for flag in flags)]
    command = [sys.executable, __file__, "--threads", str(options.threads), "--child", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def diagnose(words: list[str], threads: int) -> dict[str, Any]:
    """Run the command in this process: wall and processor minutes, memory before it and at most."""
    from typer.testing import CliRunner

    from imgrl.cli.main import app

    def run(*given: str) -> None:
        result = CliRunner().invoke(app, ["diagnose", *given, "--json", str(report_file)])
        if result.exit_code:
            raise SystemExit(result.output)

    torch.set_num_threads(threads)
    report_file = Path(words[1]).parent / "diagnose.json"
    small = Path(words[1]).parent / "small.safetensors"
    save_file({"one": torch.eye(96), "norm": torch.ones(96)}, small)
    run(str(small), str(small))  # so that no import counts
    before = resident()
    wall, spent = time.monotonic(), time.process_time()
    run(*(word.replace("+", "--", 1) if word.startswith("+") else word for word in words))
    total = json.loads(report_file.read_text())["totals"][0]
    return {
        "minutes": (time.monotonic() - wall) / 60,
        "processor_minutes": (time.process_time() - spent) / 60,
        "before_mib": before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "sparsity": total["sparsity"],
    }


def resident() -> float:
    """MiB this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def report(result: dict[str, Any]) -> None:
    """One line a figure."""
    allowed, own = 2 * result["largest_matrix_mib"], result["peak_mib"] - result["before_mib"]
    Console(highlight=False, soft_wrap=True).print(
        f"{result['parameters'] / 1e9:.3g} billion parameters a checkpoint, written in "
        f"{result['writing_minutes']:.1f} minutes\n"
        f"diagnosed in {result['minutes']:.2f} minutes on {result['threads']} threads "
        f"({result['processor_minutes']:.2f} of processor time), sparsity {result['sparsity']:.3f}\n"
        f"peak resident {result['peak_mib']:.0f} MiB, {own:.0f} MiB beyond Python and libraries\n"
        f"2 x the largest matrix {allowed:.0f} MiB: {'within' if own <= allowed else 'beyond'} it",
        markup=False,
    )


if __name__ == "__main__":
    main()
