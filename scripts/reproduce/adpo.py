"""ADPO (arXiv 2510.18913) at small scale: noisy-preference bandits, and what each anchor costs in distillation.

    python scripts/reproduce/adpo.py                   # ten seeds, into assets/reproductions/adpo
    python scripts/reproduce/adpo.py --seeds 5 --out runs/adpo

Bandits: an MLP policy over 8 arms learns from one fixed set of corrupted rewards (4 corruptions x 3 severities); every
method sees the same numbers. WinMass is the probability given to the truly best arm, on clean held-out contexts. Each
method runs once with one setting shared by all, and once with the best of six settings on seeds that are not reported.

Anchors: a student distils a fixed noisy teacher, or learns online from its own samples with noisy rewards, with ADPO's
loss under each anchor. Results are written seed by seed; a second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from adpo_anchors import BATCH, DIM, TEMPERATURES, TEST, TRAIN, Policies, distil, online, world
from adpo_page import report
from torch import Tensor

from imgrl.objectives.text import adpo_loss, kde_scores, pairwise_loss, plackett_luce_loss
from imgrl.objectives.text.adpo_targets import boltzmann, zscore

ARMS = 8
CORRUPTIONS = ("outliers", "shift", "flips", "cauchy")
LEVELS = {
    "outliers": (0.05, 0.15, 0.3),
    "shift": (1.0, 2.0, 3.0),
    "flips": (0.1, 0.2, 0.35),
    "cauchy": (0.1, 0.3, 1.0),
}
CELLS = [(name, level) for name in CORRUPTIONS for level in range(3)]
PAIRS = torch.combinations(torch.arange(ARMS))


class Variant(NamedTuple):
    """A method with its temperatures."""

    method: str
    temperature: float
    reward_temperature: float


SHARED = (1.0, 0.5)
GRIDS = {
    "hard": [(t, 1.0) for t in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)],
    "soft": [(1.0, 0.4), (3.0, 0.4), (9.0, 0.4), (27.0, 0.4), (9.0, 1.2), (27.0, 1.2)],
    "list": [(3.0, 0.4), (9.0, 0.4), (9.0, 1.2), (16.0, 1.2), (27.0, 3.6), (81.0, 10.0)],
}
METHODS = {  # name -> which grid it is tuned over
    "dpo": "hard",
    "dpo_all_pairs": "hard",
    "no_reference": "hard",
    "pair_soft": "soft",
    "list_raw": "list",
    "list_zscore": "list",
    "list_kde": "list",
    "plackett_luce": "hard",
}


def corrupt(kind: str, level: int, clean: Tensor, generator: torch.Generator) -> Tensor:
    """What the learner sees of the rewards."""
    strength, draw = LEVELS[kind][level], torch.randn(clean.shape, generator=generator)
    if kind == "shift":
        return clean + 0.3 * draw  # the contexts are shifted too, by ``strength``
    if kind == "outliers":
        wild = torch.rand(clean.shape, generator=generator) < strength
        return clean + 0.5 * draw + 10 * wild * torch.randn(clean.shape, generator=generator)
    if kind == "flips":
        flipped = torch.rand(len(clean), 1, generator=generator) < strength
        return torch.where(flipped, -clean, clean) + 0.3 * draw
    return clean + strength * torch.empty_like(clean).cauchy_(generator=generator)


def bandit_data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Contexts ``[12, TRAIN, DIM]``, seen rewards, clean rewards, test contexts, and their best arms."""
    generator = torch.Generator().manual_seed(seed)
    truth = world(generator, ARMS)
    direction = torch.nn.functional.normalize(torch.randn(DIM, generator=generator), dim=0)
    x = torch.randn(TRAIN, DIM, generator=generator)
    contexts = torch.stack(
        [x + (LEVELS[kind][level] * direction if kind == "shift" else 0) for kind, level in CELLS]
    )
    clean = truth(contexts)
    seen = torch.stack(
        [corrupt(kind, level, c, generator) for (kind, level), c in zip(CELLS, clean, strict=True)]
    )
    test = torch.randn(TEST, DIM, generator=generator)
    return contexts, seen, clean, test, truth(test).argmax(-1)


def target_of(variant: Variant, seen: Tensor) -> Tensor | None:
    """The targets of listwise methods, for the whole data set."""
    scores = {"list_raw": lambda r: r, "list_zscore": zscore, "list_kde": kde_scores}.get(variant.method)
    if scores is None:
        return None
    q = boltzmann(scores(seen.view(-1, ARMS)), temperature=variant.reward_temperature)
    return q.view_as(seen)


def bandit_loss(
    variant: Variant, live: Tensor, anchor: Tensor, seen: Tensor, q: Tensor | None, pair: Tensor
) -> Tensor:
    """Mean loss of each cell's lists, summed over cells; all of them straight from the package."""
    temperature, shape = variant.temperature, live.shape[:2]
    live, anchor, seen = (x.reshape(-1, ARMS) for x in (live, anchor, seen))
    if q is not None:
        loss = adpo_loss(live, anchor, q.reshape(-1, ARMS), temperature=temperature)
    elif variant.method == "plackett_luce":
        loss = plackett_luce_loss((live - anchor) / temperature, seen)
    else:
        if variant.method in ("dpo", "no_reference"):
            rows = torch.arange(len(live))[:, None]
            a, b, r = (x[rows, pair.repeat(shape[0], 1)] for x in (live, anchor, seen))
        else:
            a, b, r = (x[:, PAIRS].view(-1, 2) for x in (live, anchor, seen))
        margin = r[:, 0] - r[:, 1]
        soft = variant.method == "pair_soft"
        preference = (margin / variant.reward_temperature).sigmoid() if soft else (margin > 0).float()
        reference = None if variant.method == "no_reference" else b
        loss = pairwise_loss(a, reference, preference, temperature=temperature)
    return loss.view(shape[0], -1).mean(1).sum()


def bandits(seed: int, variants: list[Variant], *, hidden: int, steps: int = 300) -> list[list[float]]:
    """WinMass ``[variant][cell]`` after training, and of the reference in the last row."""
    contexts, seen, clean, test, best = bandit_data(seed)
    generator = torch.Generator().manual_seed(seed + 10_000)
    policies = Policies((len(variants), len(CELLS)), hidden, ARMS, generator)
    reference = Policies((len(CELLS),), hidden, ARMS, torch.Generator().manual_seed(seed + 10_000))
    for _ in range(30):
        rows = torch.randint(TRAIN, (BATCH,), generator=generator)
        q = boltzmann(clean[:, rows].reshape(-1, ARMS), temperature=0.5)
        logits = reference(contexts[:, rows]).view(-1, ARMS)
        reference.step(adpo_loss(logits, None, q, temperature=1.0).sum() / BATCH)
    with torch.no_grad():
        for mine, theirs in zip(policies.weights, reference.weights, strict=True):
            mine.copy_(theirs.expand_as(mine))
        anchors = reference(contexts).log_softmax(-1)
    targets = [target_of(variant, seen) for variant in variants]
    for _ in range(steps):
        rows = torch.randint(TRAIN, (BATCH,), generator=generator)
        pair = torch.rand(BATCH, ARMS, generator=generator).argsort(-1)[:, :2]
        live = policies(contexts[:, rows])
        losses = [
            bandit_loss(v, live[i], anchors[:, rows], seen[:, rows], None if q is None else q[:, rows], pair)
            for i, (v, q) in enumerate(zip(variants, targets, strict=True))
        ]
        policies.step(torch.stack(losses).sum())
    with torch.no_grad():
        mass = policies(test).softmax(-1)[..., torch.arange(TEST), best].mean(-1)
        start = reference(test).softmax(-1)[..., torch.arange(TEST), best].mean(-1)
    return [[round(x, 4) for x in row] for row in (*mass.tolist(), start.tolist())]


def tuned(cache: Callable[..., list[list[float]]]) -> list[Variant]:
    """Each method's setting with the highest WinMass over all cells, on seeds kept for that."""
    grid = [Variant(m, *s) for m, g in METHODS.items() for s in GRIDS[g]]
    runs = [torch.tensor(cache(f"tune/{s}", bandits, 1000 + s, grid, hidden=64)) for s in range(3)]
    score = torch.stack(runs).mean((0, 2))[: len(grid)].tolist()
    return [max((s, v) for s, v in zip(score, grid, strict=True) if v.method == m)[1] for m in METHODS]


def main() -> None:
    """Run what is missing, then write table, plot and verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("assets/reproductions/adpo"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    settings = {"grids": {m: GRIDS[g] for m, g in METHODS.items()}, "anchor temperatures": TEMPERATURES}
    settings = json.loads(json.dumps(settings))  # as they will be read back
    results = {"settings": settings, "runs": {}, "cpu_seconds": {}}
    if path.exists():
        results = json.loads(path.read_text())
        if results["settings"] != settings:
            raise SystemExit(
                f"Expected results of the settings of this script in {path}, got others; move them away."
            )
    runs = results["runs"]

    def cache(key: str, work: Callable, *args: object, **named: object):  # a finished seed is not run again
        if key not in runs:
            start = time.process_time()
            runs[key] = work(*args, **named)
            results["cpu_seconds"][key] = round(time.process_time() - start, 1)
            path.write_text(json.dumps(results))
            print(f"{results['cpu_seconds'][key]:6.1f} s  {key}", flush=True)
        return runs[key]

    best = tuned(cache)
    variants = [Variant(m, *SHARED) for m in METHODS] + best
    for seed in range(options.seeds):
        for hidden in (64, 128):
            cache(f"bandits{hidden}/{seed}", bandits, seed, variants, hidden=hidden)
        cache(f"distil/{seed}", distil, seed)
        cache(f"online/{seed}", online, seed)
    report(options.out, results, variants=variants, cells=CELLS, seeds=options.seeds)


if __name__ == "__main__":
    main()
