"""ASFT (arXiv 2509.23753): does an anchor keep DFT's gain and stop its drift, and does it free impossible tokens?

    python scripts/reproduce/asft.py --seeds 5

Part 1 descends the three losses on one softmax whose demonstrated token starts out next to impossible, and compares
the end with the closed form. Part 2 trains the bundled language model on demonstrations: held-out Pass@1 and the KL
from the base over training. A finished run's numbers are kept and not computed again.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from language_arms import above, interval, last, run_arms
from pages import axes_of, band, claims, options, write

from imgrl.anchor import categorical_kl
from imgrl.objectives.text import sft_loss

WEIGHT = 0.05  # of the anchor, the paper's
COMMON = (
    "run.steps=80",
    "run.minutes=null",
    "optimizer.lr=3e-4",
    "evaluation.every=20",
    "checkpoint.every=20",
    "checkpoint.keep=4",
)
ARMS = {
    "sft": ("tiny-lm/sft", *COMMON),
    "dft": ("tiny-lm/dft", *COMMON),
    "asft": ("tiny-lm/asft", *COMMON),
}


def trap(start: float, base: float, *, outcomes: int = 8, steps: int = 4000) -> dict[str, list[float]]:
    """Probability of the demonstrated token over gradient descent on logits, by loss.

    Args:
        start: its probability at the start; the rest is spread evenly.
        base: its probability under the anchor, likewise.
        outcomes: size of the vocabulary.
        steps: of gradient descent, at rate 1.
    """

    def logits(p: float) -> torch.Tensor:
        rest = math.log((1 - p) / (outcomes - 1))
        return torch.tensor([math.log(p)] + [rest] * (outcomes - 1), dtype=torch.float64)

    anchor = logits(base)
    curves = {}
    weighted: dict[str, tuple[Literal["none", "probability"], float]] = {
        "sft": ("none", 0.0),
        "dft": ("probability", 0.0),
        "asft": ("probability", WEIGHT),
    }
    for name, (weight, strength) in weighted.items():
        z = logits(start).requires_grad_()
        curve = []
        for _ in range(steps):
            log_p = z.log_softmax(-1)
            curve.append(float(log_p[0].detach().exp()))
            kl = categorical_kl(z[None, None], anchor[None, None], direction="forward")
            loss = sft_loss(log_p[:1][None], weight=weight, kl=kl, kl_weight=strength).sum()
            (gradient,) = torch.autograd.grad(loss, z)
            with torch.no_grad():
                z -= gradient
        curves[name] = curve
    return curves


def fixed_point(base: float, strength: float = WEIGHT) -> float:
    """Where ASFT ends on one softmax: the positive root of p² - (1 - λ) p - λ base = 0."""
    return ((1 - strength) + math.sqrt((1 - strength) ** 2 + 4 * strength * base)) / 2


def report(curves: dict[str, Any], traps: dict[str, list[float]], base: float) -> str:
    """Tables and verdict in Markdown."""
    lines = [
        f"| demonstrated token starts at 1e-6, base {base} | probability after {len(traps['sft'])} steps |",
        "|---|---|",
        *(f"| {name} | {curve[-1]:.3g} |" for name, curve in traps.items()),
        f"| closed form for asft | {fixed_point(base):.3g} |",
        "",
        "| tiny-lm, last step | Pass@1 | KL(base‖model), nats a token | Pass@4 |",
        "|---|---|---|---|",
    ]
    for arm, runs in curves.items():
        cells = " | ".join(interval(last(runs, key)) for key in ("pass@1", "kl", "pass@4"))
        lines.append(f"| {arm} | {cells} |")
    first = [points[0]["pass@1"] for points in curves["sft"]]
    accuracy = {arm: last(runs, "pass@1") for arm, runs in curves.items()}
    kl = {arm: last(runs, "kl") for arm, runs in curves.items()}
    freed = traps["dft"][-1] < 1e-3 < traps["asft"][-1]
    questions = {
        "DFT learns (Pass@1 above the base's)": above(accuracy["dft"], np.array(first)),
        "DFT is more accurate than SFT": above(accuracy["dft"], accuracy["sft"]),
        "ASFT is more accurate than DFT": above(accuracy["asft"], accuracy["dft"]),
        "ASFT stays nearer to the base than DFT": above(kl["dft"], kl["asft"]),
        "ASFT stays nearer to the base than SFT": above(kl["sft"], kl["asft"]),
        "the anchor frees the impossible token": freed,
    }
    lines += claims(questions)
    parts = {
        "DFT's gain over SFT": questions["DFT is more accurate than SFT"],
        "ASFT's further gain": questions["ASFT is more accurate than DFT"],
        "the anchor's hold": questions["ASFT stays nearer to the base than DFT"],
        "the trap at probability 0 and its removal": freed,
    }
    words = {True: "reproduced", False: "the other way round", None: "not separated"}
    verdict = "; ".join(f"{part}: {words[answer]}" for part, answer in parts.items())
    return "\n".join([*lines, "", f"**Verdict. {verdict}.**"]) + "\n"


def picture(curves: dict[str, Any], traps: dict[str, list[float]], base: float) -> Any:
    """Accuracy, drift, and the trap."""
    figure, axes = axes_of(3)
    for arm, runs in curves.items():
        for axis, key in zip(axes[:2], ("pass@1", "kl"), strict=True):
            band(axis, runs, key, label=arm)
    axes[0].set(title="held-out Pass@1 (band: all seeds)", xlabel="step")
    axes[1].set(title="KL(base‖model), nats a token", xlabel="step")
    for name, curve in traps.items():
        axes[2].loglog(range(1, len(curve) + 1), curve, label=name)
    axes[2].axhline(fixed_point(base), color="k", ls="--", lw=0.8, label="closed form, asft")
    axes[2].set(title="one softmax, a token next to impossible", xlabel="step", ylabel="probability")
    for axis in axes:
        axis.legend(fontsize=8)
    return figure


def main() -> None:
    """Run what is missing, then write table, verdict and plot."""
    parser = options(__doc__, "asft")
    args = parser.parse_args()
    base = 0.2
    traps = trap(1e-6, base)
    curves = run_arms(ARMS, seeds=args.seeds, out=args.out, work=args.work)
    write(args.out, report(curves, traps, base), picture(curves, traps, base), "curves.png")


if __name__ == "__main__":
    main()
