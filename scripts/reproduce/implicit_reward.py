"""Implicit Reward as the Bridge (arXiv 2507.00018): does a gentler SFT make a better start for DPO?

    python scripts/reproduce/implicit_reward.py --seeds 5

Trains the bundled language model on demonstrations, at several rates and with several f-divergences, then on pairs of
a right and a wrong solution by DPO, always alike. Judged by Pass@1 after both. A finished run's numbers are kept and
not computed again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from intervals import half_width
from language_arms import above, interval, last, run_arms
from pages import axes_of, claims, options, write

STEPS = 40
COMMON = (
    "run.minutes=null",
    f"run.steps={STEPS}",
    f"evaluation.every={STEPS}",
    f"checkpoint.every={STEPS}",
)
RATES = ("1e-3", "3e-4", "1e-4", "3e-5")
USUAL = "3e-4"  # what gentler rates are compared with; whether SFT alone is best here is a question below
DIVERGENCES = ("pearson", "hellinger", "kl", "jensen_shannon")
FIRST: dict[str, tuple[str, ...]] = {
    **{f"sft-{rate}": ("tiny-lm/sft", *COMMON, f"optimizer.lr={rate}") for rate in RATES},
    **{
        f"{name}-{USUAL}": (
            "tiny-lm/f-sft",
            *COMMON,
            f"optimizer.lr={USUAL}",
            f"objective.divergence={name}",
            "objective.beta=1.0",
        )
        for name in DIVERGENCES
    },
}


def second(first: Path) -> tuple[str, ...]:
    """DPO from a trained model, which also is its anchor."""
    return ("tiny-lm/dpo", *COMMON, "optimizer.lr=3e-5", f"model.path={first / 'model'}")


def report(first: dict[str, Any], then: dict[str, Any]) -> str:
    """Table and verdict in Markdown."""
    lines = [
        "| demonstrations | Pass@1 after them | KL(base‖model) | Pass@1 after DPO | gain of DPO |",
        "|---|---|---|---|---|",
    ]
    before = {arm: last(runs, "pass@1") for arm, runs in first.items()}
    after = {arm: last(runs, "pass@1") for arm, runs in then.items()}
    for arm, runs in first.items():
        cells = (before[arm], last(runs, "kl"), after[arm], after[arm] - before[arm])
        lines.append(f"| {arm} | {' | '.join(interval(cell) for cell in cells)} |")
    usual = f"sft-{USUAL}"
    gentler = [f"sft-{rate}" for rate in RATES if float(rate) < float(USUAL)]
    best = max(gentler, key=lambda arm: after[arm].mean())
    questions = {
        f"SFT at {USUAL} is the best SFT": all(
            before[usual].mean() >= before[f"sft-{rate}"].mean() for rate in RATES
        ),
        f"after DPO, {best} is above {usual}": above(after[best], after[usual]),
        f"DPO adds more to {best} than to {usual}": above(
            after[best] - before[best], after[usual] - before[usual]
        ),
    }
    for name in DIVERGENCES:
        questions[f"after DPO, {name} is above {usual}"] = above(after[f"{name}-{USUAL}"], after[usual])
    return "\n".join([*lines, *claims(questions)]) + "\n"


def picture(first: dict[str, Any], then: dict[str, Any]) -> Any:
    """Pass@1 after demonstrations and after DPO, by arm."""
    figure, (axis,) = axes_of(1, width=9)
    for shift, (label, curves) in zip(
        (-0.1, 0.1), (("demonstrations", first), ("then DPO", then)), strict=True
    ):
        values = np.array([last(runs, "pass@1") for runs in curves.values()])
        axis.errorbar(
            np.arange(len(values)) + shift, values.mean(1), yerr=half_width(values.T), fmt="o", label=label
        )
    axis.set(xticks=range(len(first)), ylabel="held-out Pass@1", title="mean and 95 % interval over seeds")
    axis.set_xticklabels(list(first), rotation=20)
    axis.legend(fontsize=8)
    return figure


def main() -> None:
    """Run what is missing, then write table and plot."""
    parser = options(__doc__, "implicit-reward")
    args = parser.parse_args()
    first = run_arms(FIRST, seeds=args.seeds, out=args.out, work=args.work)
    then = {}
    for arm in FIRST:
        # A model for each seed: DPO of a seed begins where the demonstrations of that seed ended.
        runs = [
            run_arms(
                {f"{arm}-then-dpo": second(args.work / f"{arm}-{seed}")},
                seeds=(seed,),
                out=args.out,
                work=args.work,
            )
            for seed in range(args.seeds)
        ]
        then[arm] = [points for one in runs for points in one[f"{arm}-then-dpo"]]
    write(args.out, report(first, then), picture(first, then), "pass.png")


if __name__ == "__main__":
    main()
