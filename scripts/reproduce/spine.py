"""SPINE (arXiv 2511.17938): does learning from votes on forking tokens only, in an entropy band, beat TTRL?

    python scripts/reproduce/spine.py --seeds 5

Test-time training without labels: the bundled language model is trained on the very problems that it is judged on,
its reward the agreement with the majority of sixteen answers. A finished run's numbers are kept and not computed
again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from language_arms import PROTOCOL, above, interval, last, run_arms
from pages import axes_of, band, claims, options, write

from imgrl.config.text import resolve_text
from imgrl.data.texts import load_rows

STEPS, VOTES = 48, 16
STABLE, FAST = "3e-5", "1e-4"  # learning rates: where TTRL is stable here, and where it is not
SHADED = ("ttrl", "spine", f"ttrl-{FAST}", f"spine-{FAST}")


def common(problems: Path, *, rate: str = STABLE) -> tuple[str, ...]:
    """Overrides of every arm: four passes over the problems to be judged on."""
    return (
        "run.minutes=null",
        f"run.steps={STEPS}",
        f"data.prompts={problems}",
        f"optimizer.lr={rate}",
        "batch.groups=8",
        f"batch.group_size={VOTES}",
        f"optimizer.scale.steps={STEPS}",
        "evaluation.every=12",
        "checkpoint.every=12",
        "checkpoint.keep=4",
    )


def arms(problems: Path) -> dict[str, tuple[str, ...]]:
    """TTRL, SPINE, SPINE less each of its two parts, and the first two at a rate where TTRL is not stable."""
    shared, hurried = common(problems), common(problems, rate=FAST)
    return {
        "ttrl": ("tiny-lm/ttrl", *shared),
        "spine": ("tiny-lm/spine", *shared),
        "no-band": ("tiny-lm/spine", *shared, "objective.band_low=0", "objective.band_high=0"),
        "no-selection": ("tiny-lm/spine", *shared, "objective.selection=all"),
        f"ttrl-{FAST}": ("tiny-lm/ttrl", *hurried),
        f"spine-{FAST}": ("tiny-lm/spine", *hurried),
    }


def write_problems(file: Path) -> Path:
    """The evaluation's problems without their answers."""
    spec = resolve_text("tiny-lm/ttrl", PROTOCOL).evaluation
    rows = load_rows(spec.prompts, count=spec.limit, needs=())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    return file


def report(curves: dict[str, Any]) -> str:
    """Table and verdict in Markdown."""
    lines = ["| arm | Pass@1 | Pass@4 | tokens an answer | KL(base‖model) |", "|---|---|---|---|---|"]
    keys = ("pass@1", "pass@4", "tokens", "kl")
    first = {key: np.array([points[0][key] for points in curves["ttrl"]]) for key in keys}
    lines.append("| base | " + " | ".join(f"{first[key].mean():.3f}" for key in keys) + " |")
    for arm, runs in curves.items():
        lines.append(f"| {arm} | " + " | ".join(interval(last(runs, key)) for key in keys) + " |")
    end = {arm: last(runs, "pass@1") for arm, runs in curves.items()}
    fast = {arm: curves[f"{arm}-{FAST}"] for arm in ("ttrl", "spine")}
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
        f"TTRL at {FAST} ends below the base": above(first["pass@1"], last(fast["ttrl"], "pass@1")),
        f"SPINE at {FAST} ends below the base": above(first["pass@1"], last(fast["spine"], "pass@1")),
        f"SPINE at {FAST} ends higher than TTRL": above(
            last(fast["spine"], "pass@1"), last(fast["ttrl"], "pass@1")
        ),
    }
    return "\n".join([*lines, *claims(questions)]) + "\n"


def picture(curves: dict[str, Any]) -> Any:
    """Pass@1, Pass@4 and length over steps."""
    figure, axes = axes_of(3)
    titles = {"pass@1": "Pass@1 (band: all seeds)", "pass@4": "Pass@4", "tokens": "tokens an answer"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for arm, runs in curves.items():
            band(axis, runs, key, label=arm, shaded=arm in SHADED)
        axis.set(title=title, xlabel="step")
    axes[2].legend(fontsize=7, loc="upper left")
    return figure


def main() -> None:
    """Run what is missing, then write table and plot."""
    parser = options(__doc__, "spine")
    args = parser.parse_args()
    problems = write_problems(args.work / "problems.jsonl")
    curves = run_arms(arms(problems), seeds=args.seeds, out=args.out, work=args.work)
    write(args.out, report(curves), picture(curves), "curves.png")


if __name__ == "__main__":
    main()
