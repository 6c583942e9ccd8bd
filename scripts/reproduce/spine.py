"""SPINE (arXiv 2511.17938): does learning from votes on forking tokens only, in an entropy band, beat TTRL?

    python scripts/reproduce/spine.py --seeds 5

Test-time training without labels: the bundled language model is trained on the very problems that it is judged on,
its reward the agreement with the majority of sixteen answers. A finished run's numbers are kept and not computed
again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from language_arms import PROTOCOL, above, interval, last, run_arms

from imgrl.config.text import resolve_text
from imgrl.data.texts import load_rows

STEPS, VOTES = 48, 16


def common(problems: Path) -> tuple[str, ...]:
    """Overrides of every arm: six passes over the problems to be judged on."""
    return (
        "run.minutes=null",
        f"run.steps={STEPS}",
        f"data.prompts={problems}",
        "optimizer.lr=3e-5",
        "batch.groups=8",
        f"batch.group_size={VOTES}",
        f"optimizer.scale.steps={STEPS}",
        "evaluation.every=12",
        "checkpoint.every=12",
        "checkpoint.keep=4",
    )


def arms(problems: Path) -> dict[str, tuple[str, ...]]:
    """TTRL, SPINE, and SPINE less each of its two parts."""
    shared = common(problems)
    return {
        "ttrl": ("tiny-lm/ttrl", *shared),
        "spine": ("tiny-lm/spine", *shared),
        "no-band": ("tiny-lm/spine", *shared, "objective.band_low=0", "objective.band_high=0"),
        "no-selection": ("tiny-lm/spine", *shared, "objective.selection=all"),
    }


def write_problems(file: Path) -> Path:
    """The evaluation's problems without their answers."""
    spec = resolve_text("tiny-lm/ttrl", PROTOCOL).evaluation
    rows = load_rows(spec.prompts, count=spec.limit, needs=())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    return file


def said(answer: bool | None) -> str:
    """An answer in words."""
    return {True: "yes", False: "no, the other way round", None: "not separated"}[answer]


def report(curves: dict[str, Any]) -> str:
    """Table and verdict in Markdown."""
    lines = ["| arm | Pass@1 | Pass@4 | tokens an answer | KL(base‖model) |", "|---|---|---|---|---|"]
    keys = ("pass@1", "pass@4", "tokens", "kl")
    first = {key: np.array([points[0][key] for points in curves["ttrl"]]) for key in keys}
    lines.append("| base | " + " | ".join(f"{first[key].mean():.3f}" for key in keys) + " |")
    for arm, runs in curves.items():
        lines.append(f"| {arm} | " + " | ".join(interval(last(runs, key)) for key in keys) + " |")
    end = {arm: last(runs, "pass@1") for arm, runs in curves.items()}
    questions = {
        "TTRL learns without labels": above(end["ttrl"], first["pass@1"]),
        "SPINE learns without labels": above(end["spine"], first["pass@1"]),
        "SPINE ends higher than TTRL": above(end["spine"], end["ttrl"]),
        "the band helps": above(end["spine"], end["no-band"]),
        "the selection helps": above(end["spine"], end["no-selection"]),
        "TTRL's answers become shorter": above(first["tokens"], last(curves["ttrl"], "tokens")),
        "SPINE keeps answers longer than TTRL": above(
            last(curves["spine"], "tokens"), last(curves["ttrl"], "tokens")
        ),
    }
    lines += ["", "| claim | here |", "|---|---|"]
    lines += [f"| {claim} | {said(answer)} |" for claim, answer in questions.items()]
    return "\n".join(lines) + "\n"


def picture(file: Path, curves: dict[str, Any]) -> None:
    """Pass@1, Pass@4 and length over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    titles = {"pass@1": "Pass@1 (band: all seeds)", "pass@4": "Pass@4", "tokens": "tokens an answer"}
    for arm, runs in curves.items():
        steps = [point["step"] for point in runs[0]]
        for axis, (key, title) in zip(axes, titles.items(), strict=True):
            values = np.array([[point[key] for point in points] for points in runs])
            axis.plot(steps, values.mean(0), "o-", ms=3, label=arm)
            if arm in ("ttrl", "spine"):
                axis.fill_between(steps, values.min(0), values.max(0), alpha=0.15)
            axis.set(title=title, xlabel="step")
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=80)


def main() -> None:
    """Run what is missing, then write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("assets/reproductions/spine"))
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce-spine"), help="run folders")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"Expected --seeds of at least 2 for an interval, got {args.seeds}.")
    problems = write_problems(args.work / "problems.jsonl")
    curves = run_arms(arms(problems), seeds=args.seeds, out=args.out, work=args.work)
    text = report(curves)
    print(text)
    (args.out / "table.md").write_text(text)
    picture(args.out / "curves.png", curves)


if __name__ == "__main__":
    main()
