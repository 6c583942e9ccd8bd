"""The Path Not Taken (arXiv 2511.08567): does reinforcement learning learn off the principals, by strict nulls?

    python scripts/reproduce/principals.py --seeds 5

Trains the bundled language model by GRPO and by SFT, with the same optimiser, rate, steps and sequences a step, and
the bundled image model by CRD (all weights, not a LoRA), then compares every run with the base as ``imgrl diagnose``
does: once by the paper's density baseline, once by nulls that know what rounding does to small weights. What is
finished is kept and not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from intervals import half_width
from language_arms import above, interval, run_arms
from pages import axes_of, claims, options, write

from imgrl.analysis import Settings, compare, document, pair
from imgrl.resources import asset
from imgrl.training.run_folder import write_json

STEPS = 64
COMMON = (
    "run.minutes=null",
    f"run.steps={STEPS}",
    "optimizer.lr=1e-4",
    f"optimizer.scale={{first: 1.0, last: 0.1, steps: {STEPS}}}",
    "evaluation.every=64",
    "checkpoint.every=64",
)
LANGUAGE: dict[str, tuple[str, ...]] = {
    "rl": ("tiny-lm/grpo", *COMMON, "batch.groups=8"),
    "sft": ("tiny-lm/sft", *COMMON),
}
IMAGES = (
    "model.train=full",
    "run.rounds=32",
    "run.minutes=null",
    "batch.groups=4",
    "batch.micro_groups=4",
    "optimizer.lr=1e-4",
    "optimizer.scale.steps=32",
    "evaluation.every=0",
    "evaluation.steps=[10]",
    "checkpoint.every=32",
)
SETTINGS = Settings(k=(16,), alpha=(0.3,))  # a tenth of the matrices' rank


def train_images(seed: int, folder: Path) -> None:
    """CRD on all weights of the bundled image model."""
    from imgrl import Trainer, resolve

    if not (folder / "summary.json").exists():
        recipe = resolve("tiny-sd3/crd", [*IMAGES, f"run.seed={seed}", f"run.dir={folder}"])
        Trainer(recipe).train(resume=any((folder / "checkpoints").glob("step-*")))


def measured(file: Path, base: Path, tuned: Sequence[Path]) -> dict[str, Any]:
    """Totals and agreement of runs against their base, kept in ``file``."""
    if not file.exists():
        pairing = pair(base, tuned)
        layers = list(compare(pairing, SETTINGS))
        names = [path.parent.name for path in tuned]
        found = document(pairing, layers, SETTINGS, base=base.name, tuned=names)
        write_json(file, {key: found[key] for key in ("base", "tuned", "settings", "totals", "agreement")})
    return json.loads(file.read_text())


def column(found: dict[str, Any], get: Callable[[dict[str, Any]], float]) -> np.ndarray:
    """A number of every run."""
    return np.array([get(total) for total in found["totals"]])


def overlap(mask: str, weights: str, ratio: str) -> Callable[[dict[str, Any]], float]:
    """Reads how much of an update falls on a mask, over a null."""

    def get(total: dict[str, Any]) -> float:
        found = [o[ratio] for o in total["overlaps"] if (o["mask"], o["weights"]) == (mask, weights)]
        return float(found[0]) if found else float("nan")  # a base in bfloat16 has no finer weights

    return get


ROWS: dict[str, Callable[[dict[str, Any]], float]] = {
    "stored weights unchanged": lambda total: total["sparsity_of_matrices"],
    "update / weights": lambda total: total["relative_update"],
    "spectral drift / update": lambda total: total["drift_over_update"],
    "the same of noise": lambda total: total["noise_drift"] / total["relative_update"],
    "largest angle of the leading 16, degrees": lambda total: total["largest_angle"],
    "the same of noise of this size": lambda total: total["noise_angle"],
    "on principal weights / density": overlap("principal", "stored", "over_density"),
    "on principal weights / matched by size": overlap("principal", "stored", "over_matched"),
    "on principal weights, float32 / density": overlap("principal", "master", "over_density"),
    "on small weights / density": overlap("low", "stored", "over_density"),
    "on small weights / rounded noise": overlap("low", "stored", "over_noise"),
}


def jaccard(found: dict[str, Any], null: str) -> np.ndarray:
    """Agreement of pairs of runs over what a null expects."""
    return np.array([pair["jaccard"] / pair[null] for pair in found["agreement"]])


def beyond(values: np.ndarray, sign: int) -> bool | None:
    """Whether ratios lie above (1) or below (-1) one: True or False where the 95 % interval leaves 1, else None."""
    return above(sign * values, np.full_like(values, sign))


def report(found: dict[str, dict[str, Any]]) -> str:
    """Table and verdict in Markdown."""
    lines = [f"| | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for name, get in ROWS.items():
        cells = (column(each, get) for each in found.values())
        lines.append(
            f"| {name} | {' | '.join('–' if np.isnan(cell).any() else interval(cell) for cell in cells)} |"
        )
    for null in ("bernoulli_null", "matched_null"):
        cells = " | ".join(f"{jaccard(each, null).mean():.3f}" for each in found.values())
        lines.append(f"| agreement of two runs / {null.replace('_', ' ')} | {cells} |")
    rl, sft = (found[arm]["totals"] for arm in ("rl", "sft"))

    def of(totals: list[dict[str, Any]], name: str) -> np.ndarray:
        return np.array([ROWS[name](total) for total in totals])

    questions = {
        "RL leaves more stored weights unchanged than SFT": above(
            of(rl, "stored weights unchanged"), of(sft, "stored weights unchanged")
        ),
        "RL moves the weights less in all": above(of(sft, "update / weights"), of(rl, "update / weights")),
        "RL's spectrum drifts less for the update's size": above(of(sft, DRIFT), of(rl, DRIFT)),
        "RL turns the leading directions less": above(of(sft, ANGLE), of(rl, ANGLE)),
        "the same beside noise of the update's size": above(
            of(sft, ANGLE) / of(sft, NOISE), of(rl, ANGLE) / of(rl, NOISE)
        ),
    }
    for arm in found:
        totals = found[arm]["totals"]
        questions |= {
            f"{arm} avoids principal weights, by density": beyond(
                of(totals, "on principal weights / density"), -1
            ),
            f"{arm} avoids principal weights, matched by size": beyond(
                of(totals, "on principal weights / matched by size"), -1
            ),
            f"{arm} prefers small weights, by density": beyond(of(totals, "on small weights / density"), 1),
            f"{arm} prefers small weights, beside rounded noise": beyond(
                of(totals, "on small weights / rounded noise"), 1
            ),
        }
    return "\n".join([*lines, *claims(questions)]) + "\n"


DRIFT = "spectral drift / update"
ANGLE, NOISE = "largest angle of the leading 16, degrees", "the same of noise of this size"


def picture(found: dict[str, dict[str, Any]]) -> Any:
    """Every ratio by arm, with intervals."""
    names = [name for name in ROWS if name.startswith("on ")]
    figure, (axis,) = axes_of(1, width=9)
    for i, (arm, each) in enumerate(found.items()):
        values = np.array([column(each, ROWS[name]) for name in names])
        places = np.arange(len(names)) + 0.2 * (i - 1)
        axis.errorbar(values.mean(1), places, xerr=half_width(values.T), fmt="o", label=arm)
    axis.axvline(1, color="k", lw=0.8)
    axis.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlabel="observed / null; 1: explained by it",
        title="where stored weights change",
    )
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    return figure


def main() -> None:
    """Run what is missing, then write table and plot."""
    parser = options(__doc__, "principals")
    args = parser.parse_args()
    run_arms(LANGUAGE, seeds=args.seeds, out=args.out, work=args.work)
    found = {}
    for arm in LANGUAGE:
        tuned = [args.work / f"{arm}-{seed}" / "model" for seed in range(args.seeds)]
        found[arm] = measured(args.out / f"{arm}.json", asset("tiny-lm"), tuned)
    crd = [args.work / f"crd-{seed}" for seed in range(args.seeds)]
    if not (args.out / "crd.json").exists():
        for seed, folder in enumerate(crd):
            train_images(seed, folder)
    found["crd"] = measured(
        args.out / "crd.json",
        asset("tiny-sd3") / "transformer",
        [folder / "model" / "transformer" for folder in crd],
    )
    write(args.out, report(found), picture(found), "overlaps.png")


if __name__ == "__main__":
    main()
