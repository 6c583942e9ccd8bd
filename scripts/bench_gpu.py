"""Everything that needs a GPU, in one go: the tests marked ``gpu`` and the benchmarks at full size, kept with date.

python scripts/bench_gpu.py            # writes assets/benchmarks/gpu-<date>-<device>.json
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the tests, then the bench; fail if either does."""
    if not torch.cuda.is_available():
        raise SystemExit("bench_gpu.py needs a CUDA device; on a CPU run scripts/bench.py.")
    device = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
    file = ROOT / "assets" / "benchmarks" / f"gpu-{datetime.date.today()}-{device}.json"
    tests = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-q"], cwd=ROOT, check=False)
    bench = [sys.executable, "scripts/bench.py", "--device", "cuda", "--json", str(file)]
    subprocess.run(bench, cwd=ROOT, check=True)
    raise SystemExit(tests.returncode)


if __name__ == "__main__":
    main()
