"""RLAD (arXiv 2602.22495): does a teacher inside the trust-region ratio teach more than one beside the reward?

    python scripts/pretrain_tiny_lm.py --work runs/teacher --width 320 --steps 500 --slips 0.1 --terse 0
    python scripts/reproduce/rlad.py --teacher runs/teacher/tiny-lm --seeds 5

Trains the bundled language model with GRPO, with KDRL (a KL to the teacher beside the reward) and with TRRD at several
shares of the old policy in its ratio. Two updates a batch, since a ratio does little in a first one. A finished run's
numbers are kept and not computed again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from intervals import half_width
from language_arms import above, interval, last, run_arms
from pages import axes_of, band, claims, options, write

BATCHES = 48
COMMON = (
    "run.minutes=null",
    f"run.steps={2 * BATCHES}",
    f"optimizer.scale.steps={2 * BATCHES}",
    "optimizer.lr=5e-5",
    "batch.groups=8",
    "objective.passes=2",
    "evaluation.every=16",
    "checkpoint.every=16",
    "checkpoint.keep=6",
)
ALPHAS = ("0.1", "0.3", "0.5", "0.7", "0.9")
WEIGHTS = ("2e-3", "0.1")  # KDRL's paper's, and one at which its teacher matters here


def arms(teacher: Path) -> dict[str, tuple[str, ...]]:
    """GRPO, KDRL and TRRD; alpha 1 would be GRPO."""
    taught = (*COMMON, f"model.teacher={teacher}")
    return {
        "grpo": ("tiny-lm/grpo", *COMMON),
        **{
            f"kdrl-{weight}": ("tiny-lm/kdrl", *taught, f"objective.kl_weight={weight}") for weight in WEIGHTS
        },
        **{f"trrd-{alpha}": ("tiny-lm/trrd", *taught, f"objective.alpha={alpha}") for alpha in ALPHAS},
    }


def report(curves: dict[str, Any]) -> str:
    """Table and verdict in Markdown."""
    lines = ["| arm | Pass@1 | Pass@4 | KL(base‖model), nats a token |", "|---|---|---|---|"]
    for arm, runs in curves.items():
        lines.append(
            f"| {arm} | " + " | ".join(interval(last(runs, key)) for key in ("pass@1", "pass@4", "kl")) + " |"
        )
    end = {arm: last(runs, "pass@1") for arm, runs in curves.items()}
    best = max((f"kdrl-{weight}" for weight in WEIGHTS), key=lambda arm: end[arm].mean())
    questions = {
        "TRRD at 0.5 is above GRPO": above(end["trrd-0.5"], end["grpo"]),
        f"TRRD at 0.5 is above the better KDRL ({best})": above(end["trrd-0.5"], end[best]),
        f"{best} is above GRPO": above(end[best], end["grpo"]),
        **{
            f"TRRD at 0.5 is above {alpha}": above(end["trrd-0.5"], end[f"trrd-{alpha}"])
            for alpha in ALPHAS
            if alpha != "0.5"
        },
    }
    return "\n".join([*lines, *claims(questions)]) + "\n"


def picture(curves: dict[str, Any]) -> Any:
    """Pass@1 over updates, and at the end over alpha."""
    figure, axes = axes_of(2)
    for arm in ("grpo", *(f"kdrl-{weight}" for weight in WEIGHTS), "trrd-0.5"):
        band(axes[0], curves[arm], "pass@1", label=arm)
    axes[0].set(title="held-out Pass@1 (band: all seeds)", xlabel="update")
    axes[0].legend(fontsize=8)
    swept = [*(f"trrd-{alpha}" for alpha in ALPHAS), "grpo"]
    ends = np.array([last(curves[arm], "pass@1") for arm in swept])
    axes[1].errorbar([*map(float, ALPHAS), 1.0], ends.mean(1), yerr=half_width(ends.T), fmt="o")
    axes[1].set(title="at the end, by share of the old policy (1: GRPO)", xlabel="alpha")
    return figure


def main() -> None:
    """Run what is missing, then write table and plot."""
    parser = options(__doc__, "rlad")
    parser.add_argument("--teacher", type=Path, required=True, help="a larger model with the same tokenizer")
    args = parser.parse_args()
    curves = run_arms(arms(args.teacher.resolve()), seeds=args.seeds, out=args.out, work=args.work)
    write(args.out, report(curves), picture(curves), "curves.png")


if __name__ == "__main__":
    main()
