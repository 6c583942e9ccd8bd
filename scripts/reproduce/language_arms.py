"""Arms of an experiment on the bundled language model: one recipe with changes each, run once a seed.

Used by the reproduction scripts. A finished arm's numbers are kept in ``<out>/<arm>-<seed>.json`` and not computed
again; the run folders themselves go to a folder that may be thrown away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intervals import half_width
from sampled_texts import Texts

from imgrl.anchor import categorical_kl
from imgrl.config.text import resolve_text
from imgrl.objectives.text import reduce
from imgrl.resources import model_path
from imgrl.training.run_folder import write_json
from imgrl.training.text.session import TextSession
from imgrl.world.arithmetic import problems

PROTOCOL = ("evaluation.limit=96", "evaluation.samples=4")


def run_arms(
    arms: Mapping[str, Sequence[str]], *, seeds: int | Sequence[int], out: Path, work: Path
) -> dict[str, list[list[dict[str, float]]]]:
    """Curves by arm and seed; a point has the step, completions generated, held-out scores and the KL from the base.

    Args:
        arms: for each arm a recipe's name and overrides; every arm saves and evaluates at the same steps.
        seeds: which, or how many from 0 on.
        out: where numbers are kept.
        work: where runs are written.
    """
    out.mkdir(parents=True, exist_ok=True)
    curves: dict[str, list[list[dict[str, float]]]] = {arm: [] for arm in arms}
    for arm, (recipe, *changes) in arms.items():
        for seed in range(seeds) if isinstance(seeds, int) else seeds:
            file = out / f"{arm}-{seed}.json"
            if not file.exists():
                points = one_run(recipe, [*changes, f"run.seed={seed}"], work / f"{arm}-{seed}")
                write_json(file, points)
                print(arm, seed, points[-1], flush=True)
            curves[arm].append(json.loads(file.read_text()))
    return curves


def one_run(recipe: str, changes: Sequence[str], folder: Path) -> list[dict[str, float]]:
    """Train in ``folder`` (go on where a run was cut off) and read its curve."""
    chosen = resolve_text(recipe, [*PROTOCOL, *changes, f"run.dir={folder}"])
    if not (folder / "summary.json").exists():
        started = any((folder / "checkpoints").glob("checkpoint-*"))
        TextSession(chosen).train(resume=started)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    completions = chosen.batch.groups * chosen.batch.sampled
    generated = {  # a row with a mean length belongs to a step that generated
        row["round"]: completions * (1 - row.get("objective/replayed", 0.0))
        for row in rows
        if "completions/mean_length" in row
    }
    drift = Drift(chosen.model.path)
    points = []
    for row in (row for row in rows if "heldout/pass@1" in row):
        step = row["round"]
        kl = drift(folder / "checkpoints" / f"checkpoint-{step}") if step else 0.0
        rollouts = sum(count for at, count in generated.items() if at <= step)
        points.append({"step": step, "kl": kl, "rollouts": rollouts} | scores(row))
    return points


def scores(row: Mapping[str, float]) -> dict[str, float]:
    """The held-out part of a row of metrics."""
    return {key.removeprefix("heldout/"): v for key, v in row.items() if key.startswith("heldout/")}


class Drift:
    """KL(base || model) a token, in nats, on texts the base itself wrote for held-out problems."""

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = model_path(model)
        self.load: Any = AutoModelForCausalLM.from_pretrained
        base = self.load(folder, dtype=torch.float32).eval()
        torch.manual_seed(1)
        asked = [problem.prompt for problem in problems(96, split="heldout", seed=1)]
        self.texts = Texts(base, AutoTokenizer.from_pretrained(folder), asked)
        self.rows = torch.arange(len(self.texts.ids))
        with torch.no_grad():
            self.anchor = self.texts.logits(base, self.rows)

    @torch.no_grad()
    def __call__(self, folder: Path) -> float:
        """Of the weights saved in a folder."""
        own = self.texts.logits(self.load(folder, dtype=torch.float32).eval(), self.rows)
        kl = categorical_kl(own, self.anchor, direction="forward")
        return float(reduce(kl, self.texts.mask, how="token"))


def last(curves: Sequence[Sequence[Mapping[str, float]]], key: str) -> np.ndarray:
    """A number of the last point, by seed."""
    return np.array([points[-1][key] for points in curves])


def interval(values: np.ndarray) -> str:
    """Mean and half-width of the 95 % t-interval over seeds."""
    return f"{values.mean():.3f} ± {half_width(values):.3f}"


def above(one: np.ndarray, other: np.ndarray) -> bool | None:
    """Whether the first is larger over paired seeds: True or False where the 95 % interval leaves 0, else None."""
    gap = one - other
    return None if abs(gap.mean()) <= half_width(gap) else bool(gap.mean() > 0)
