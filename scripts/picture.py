"""One picture of a finished run: same-seed images before and after, and the held-out curve between.

python scripts/picture.py runs/my-run --out assets/crd.png
python scripts/picture.py runs/my-run --curves assets/benchmarks/crd-nft/curves.json --out assets/crd.png
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from compare import SCORE, read
from PIL import Image


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--curves", type=Path, help="curves.json of scripts/compare.py, instead of the run's own"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    grids = sorted((args.run / "grids").glob("round-*.png"))
    if len(grids) < 2:
        raise SystemExit(
            f"Expected grids of at least two evaluations in {args.run / 'grids'}, found {len(grids)}."
        )
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4), width_ratios=(1.3, 1.5, 1.3), layout="constrained")
    for axis, file, title in ((axes[0], grids[0], "before"), (axes[2], grids[-1], "after")):
        axis.imshow(Image.open(file), interpolation="nearest")
        axis.set_title(title)
        axis.set(xticks=[], yticks=[], frame_on=False)
    names = (args.run / "grids" / "prompts.txt").read_text().splitlines()
    rows = Image.open(grids[0]).height / len(names)
    axes[0].set_yticks(
        [rows * (i + 0.5) for i in range(len(names))], [textwrap.fill(n, 24) for n in names], fontsize=8
    )
    axes[0].tick_params(left=False)
    curves = json.loads(args.curves.read_text()) if args.curves else {args.run.name: [read(args.run)]}
    for index, (label, runs) in enumerate(curves.items()):
        for number, run in enumerate(runs):
            x, y = [row["minutes"] for row in run], [row[SCORE] for row in run]
            axes[1].plot(x, y, color=f"C{index}", label=label if not number else None)
    axes[1].set_xlabel("minutes of training")
    axes[1].set_ylabel("held-out score")
    axes[1].grid(alpha=0.3)
    if args.curves:
        axes[1].legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
