"""Makes a model like assets/tiny-sd3 from nothing: autoencoder, its decoder, equal channels, flow matching.

    python scripts/pretrain_tiny.py --work runs/pretrain                  # five hours on two CPU cores
    python scripts/pretrain_tiny.py --work runs/pretrain --share 0.002    # a look at every stage, two minutes

Each stage is a script of its own, which says more: ``pretrain_vae.py``, the same with ``--decoder-only``,
``pretrain_whiten.py``, ``pretrain_flow.py``. A finished stage is not repeated; flow matching goes on where it was cut
off. The bundled model came about in more steps (its README); this order has been run in full nowhere, only shortened.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

MINUTES = {"vae": 15.0, "decoder": 20.0, "flow": 240.0}
PICTURES = 100_000


def stages(work: Path, share: float, seed: int) -> dict[str, list[str]]:
    """Script and arguments of each stage, in order."""
    minutes = {stage: f"{share * whole:g}" for stage, whole in MINUTES.items()}
    common = ["--work", str(work), "--seed", str(seed)]
    pictures = str(max(2048, round(share * PICTURES)))
    return {
        "vae": ["pretrain_vae.py", *common, "--minutes", minutes["vae"]],
        "decoder": [
            *("pretrain_vae.py", *common, "--minutes", minutes["decoder"]),
            *("--decoder-only", "--styles", "0.45"),
        ],
        "whiten": ["pretrain_whiten.py", *common],
        "flow": [
            *("pretrain_flow.py", *common, "--minutes", minutes["flow"], "--pictures", pictures),
            *("--signs", "0.2", "--wrong", "0.2"),
        ],
    }


def main() -> None:
    """Run what is not finished."""
    parser = argparse.ArgumentParser(description="Makes a model like assets/tiny-sd3 from nothing.")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--share", type=float, default=1.0, help="of every stage's time and pictures")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.share > 0:
        parser.error(f"Expected a --share above 0, got {args.share}.")
    args.work.mkdir(parents=True, exist_ok=True)
    for stage, (script, *arguments) in stages(args.work, args.share, args.seed).items():
        done = args.work / f"{stage}.done"  # whitening twice would not be the same as once
        if done.exists():
            continue
        print(f"{stage}: {script} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *arguments], check=True)
        done.touch()
    print(f"{args.work / 'tiny-sd3'} is finished")


if __name__ == "__main__":
    main()
