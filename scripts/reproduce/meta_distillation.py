"""Recursive meta-distillation (arXiv 2601.13100): does an anchor in the base stop drift?

    python scripts/reproduce/meta_distillation.py --seeds 5

Part 1 checks the contraction statements on the probability simplex, where everything can be computed. Part 2 lets
the bundled language model learn from its own samples over generations, without an anchor and with one. Results go to
``<out>/<part>-<seed>.json`` as soon as a seed is done, and finished seeds are not repeated. The parts are
meta_distillation_simplex.py and meta_distillation_lm.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from intervals import half_width
from meta_distillation_lm import ARMS, generations
from meta_distillation_simplex import STEPS, STRENGTHS, simplex


def kept(out: Path, part: str, seeds: int, run: Callable[[int], Any]) -> list[Any]:
    """Results of every seed: read where they are, else computed and written."""
    found = []
    for seed in range(seeds):
        file = out / f"{part}-{seed}.json"
        if not file.exists():
            result = run(seed)
            file.with_suffix(".tmp").write_text(json.dumps(rounded(result)) + "\n")
            file.with_suffix(".tmp").replace(file)
            print(part, seed, "done", flush=True)
        found.append(json.loads(file.read_text()))
    return found


def rounded(value: Any) -> Any:
    """The same tree with six significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % t-interval over seeds."""
    return f"{np.mean(values):.4g} ± {half_width(values):.2g}"


def stationary(strength: float, n: int = 20) -> float:
    """Diversity that sampling n at a time leaves in the long run, over the base's: fixed point of its recursion."""
    kept, left = (1 - strength) ** 2, 1 - 1 / n
    return left * (1 - kept) / (1 - left * kept)


def facts(rows: list[dict[str, Any]]) -> list[tuple[str, str, bool | None]]:
    """(statement, number, whether it holds in every seed, None if not claimed) for part 1."""

    def worst(operator: str, key: str) -> float:
        return max(
            v[key] for r in rows for k, v in r["ratios"].items() if k.startswith(operator) and key in v
        )

    def recursions(*path: str) -> list[Any]:
        found: list[Any] = [r["recursion"] for r in rows]
        for key in path:
            found = [item[key] for item in found]
        return found

    def last(strength: str) -> list[float]:
        return [r["sampling"][strength][-1] for r in rows]

    def below(name: str, ratio: float) -> tuple[str, str, bool]:
        return name, f"{ratio:.3f}", ratio <= 1 + 1e-9

    def near(strength: str, expected: float) -> bool:
        return abs(float(np.mean(last(strength))) - expected) < 0.02

    violations = [r["ratios"]["geometric/0.5"]["reverse_violations"] for r in rows]
    forward = {name: worst(name, "forward_worst") for name in ("arithmetic", "geometric", "history")}
    reverse = {name: worst(name, "reverse_worst") for name in ("arithmetic", "geometric")}
    closed = max(recursions("arithmetic", "closed_form_error") + recursions("geometric", "closed_form_error"))
    rate, moved = recursions("arithmetic", "rate_near_base"), max(recursions("moved_without_anchor"))
    floor = recursions("error_floor")
    excess = max(r["small_student"]["excess_ratio_worst"] for r in rows)
    least = min(r["small_student"]["irreducible"] for r in rows)
    final = max(curve[-1] for curve in recursions("arithmetic", "curve"))
    return [
        below("1 arithmetic: KL(p‖M) ≤ (1−λ) KL(p‖q); worst ratio", forward["arithmetic"]),
        below("1 arithmetic: KL(M‖p) ≤ (1−λ) KL(q‖p); worst ratio", reverse["arithmetic"]),
        below("2 geometric: KL(p‖M) ≤ (1−λ) KL(p‖q); worst ratio", forward["geometric"]),
        (
            "2 geometric: not for KL(M‖p); worst ratio",
            f"{reverse['geometric']:.2f}",
            reverse["geometric"] > 1,
        ),
        ("2 share of points where that fails, λ = 0.5", interval(violations), min(violations) > 0),
        ("3 closed forms; largest difference", f"{closed:.1e}", closed < 1e-10),
        (
            "3 rate near the base, λ = 0.3, against 0.49",
            interval(rate),
            bool(np.allclose(rate, 0.49, atol=0.01)),
        ),
        ("4 worst share of KL left after 30 generations, λ = 0.3", f"{final:.1e}", final <= 0.7**STEPS),
        ("4 λ = 0 moves no point; largest move", f"{moved:.1e}", moved < 1e-10),
        ("5 error 0.02 a generation: TV floor, bound 0.0667", interval(floor), max(floor) <= 0.02 / 0.3),
        (
            "6 λ = 0, 20 samples: diversity left, against 0.215",
            interval(last("0.0")),
            near("0.0", 0.95**STEPS),
        ),
        ("6 λ = 0.3: diversity left, against 0.906", interval(last("0.3")), near("0.3", stationary(0.3))),
        ("7 small student: irreducible KL, least of the seeds", f"{least:.3f}", least > 0),
        ("7 its excess over that: worst ratio to (1−λ)", f"{excess:.2f}", None),
        below("8 history: KL(p‖M) ≤ (1−λ) largest in the window; worst ratio", forward["history"]),
    ]


def compared(rows: list[dict[str, Any]], key: str) -> dict[str, list[float]]:
    """Last generation's value of ``key`` by arm over seeds."""
    return {arm: [row[arm][-1][key] for row in rows] for arm in ARMS}


def report(part1: list[Any], part2: list[Any]) -> str:
    """Tables and verdict in Markdown."""
    table = facts(part1)
    lines = ["| statement (simplex) | measured | holds |", "|---|---|---|"]
    lines += [
        f"| {name} | {number} | {'not claimed' if holds is None else 'yes' if holds else 'NO'} |"
        for name, number, holds in table
    ]
    every = all(holds is not False for *_, holds in table)
    verdict = f"On the simplex {'all' if every else 'NOT all'} statements hold in {len(part1)} seeds"
    if part2:
        start = [row["free"][0] for row in part2]
        lines += [
            "",
            f"| language model after {len(part2[0]['free']) - 1} generations | base | λ = 0 | λ = 0.3 |",
        ]
        lines += ["|---|---|---|---|"]
        for key in start[0]:
            arms = compared(part2, key)
            cells = [interval(values) for values in ([s[key] for s in start], arms["free"], arms["anchored"])]
            lines.append(f"| {key} | {' | '.join(cells)} |")
        gaps = [np.log(a) - np.log(b) for a, b in zip(*compared(part2, "kl_to_base").values(), strict=True)]
        half = half_width(gaps)
        low, mid, high = np.exp([np.mean(gaps) - half, np.mean(gaps), np.mean(gaps) + half])
        verdict += (
            f"; the language model without an anchor is {mid:.1f} times ({low:.1f} to {high:.1f}, 95 %, "
            f"{len(part2)} paired seeds) as far from the base in KL as the anchored one"
        )
        every = every and low > 1
    claim = "**Verdict: " + ("reproduced" if every else "not reproduced") + "** (as reconstructed). "
    return "\n".join([*lines, "", claim + verdict + "."]) + "\n"


def picture(file: Path, part1: list[Any], part2: list[Any]) -> None:
    """Up to four panels: contraction, the direction that fails, sampling, and the language model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = 4 if part2 else 3
    figure, axes = plt.subplots(1, panels, figsize=(4.3 * panels, 3.6), layout="constrained")
    steps = np.arange(1, STEPS + 1)
    for operator in ("arithmetic", "geometric"):
        curve = np.max([row["recursion"][operator]["curve"] for row in part1], 0)
        axes[0].semilogy(steps, curve, label=operator)
    axes[0].semilogy(steps, 0.7**steps, "k--", label="bound $(1-\\lambda)^t$")
    axes[0].set(title="KL(p‖q) over its start, worst point, λ = 0.3", xlabel="generation")
    axes[0].legend()
    chosen = [0.1, 0.3, 0.5, 0.8]
    for operator in ("arithmetic", "geometric"):
        worst = [max(r["ratios"][f"{operator}/{s}"]["reverse_worst"] for r in part1) for s in chosen]
        axes[1].plot(chosen, worst, "o-", label=operator)
    axes[1].axhline(1, color="k", ls="--")
    axes[1].set(title="KL(M‖p) over (1−λ) KL(q‖p), worst point", xlabel="λ")
    axes[1].legend()
    for strength in STRENGTHS:
        rows = np.array([row["sampling"][str(strength)] for row in part1])
        axes[2].plot(steps, rows.mean(0), label=f"λ = {strength}")
    axes[2].plot(steps, 0.95**steps, "k--", label="$(1-1/n)^t$")
    axes[2].set(title="diversity left, 20 samples a generation", xlabel="generation", ylim=(0, 1.05))
    axes[2].legend(fontsize=8)
    if part2:
        for arm, label in zip(ARMS, ("λ = 0", "λ = 0.3"), strict=True):
            rows = np.array([[point["kl_to_base"] for point in row[arm]] for row in part2])
            axes[3].plot(rows.mean(0), "o-", label=label)
            axes[3].fill_between(range(rows.shape[1]), rows.min(0), rows.max(0), alpha=0.2)
        axes[3].set(title="tiny-lm: KL(base‖student), nats a token", xlabel="generation")
        axes[3].legend()
    figure.savefig(file, dpi=80)


def main() -> None:
    """Run what is missing, then write table, verdict and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("assets/reproductions/meta-distillation"))
    parser.add_argument("--model", default="tiny-lm", help="of part 2: a bundled name or a folder")
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--only", choices=("simplex",), help="leave part 2 out")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"Expected --seeds of at least 2 for an interval, got {args.seeds}.")
    args.out.mkdir(parents=True, exist_ok=True)
    part1 = kept(args.out, "simplex", args.seeds, simplex)
    part2: list[Any] = []
    if args.only is None:
        part2 = kept(
            args.out,
            "lm",
            args.seeds,
            lambda seed: generations(args.model, seed=seed, count=args.generations),
        )
    text = report(part1, part2)
    print(text)
    (args.out / "table.md").write_text(text)
    picture(args.out / "curves.png", part1, part2)


if __name__ == "__main__":
    main()
