"""All figures of one matrix before and after training, read in a handful of passes over its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product

import torch
from torch import Tensor

from imgrl.analysis.figures import Agreement, Change, Layer, MaskOverlap, Settings
from imgrl.analysis.nulls import matched_jaccard, noise_rates, overlap
from imgrl.analysis.spectrum import Spectrum, angles, decompose, drift, principal_rows, with_noise
from imgrl.analysis.update import LEVELS, Threshold, bins_of_levels, changed, levels, low_level, stored
from imgrl.analysis.weights import Matrix, blocks
from imgrl.errors import ModelError

__all__ = ["measure"]

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def measure(base: Matrix, tuned: Sequence[Matrix], settings: Settings) -> Layer:
    """Measure a matrix and its trained versions, all of one shape.

    A vector (side 1) has no spectrum and no masks: only its changed entries are counted.

    Raises:
        ModelError: if a weight is not finite.
    """
    layer = Layer(
        name=base.name,
        shape=base.original,
        dtype=_short(base),
        parameters=base.parameters,
        changes=[Change() for _ in tuned],
    )
    counts = _first_pass(base, tuned, layer)
    if base.side == 1:
        return layer
    for change in layer.changes:
        if not _moved(change) and change.relative is not None:
            _stand_still(change, base, settings)
    if any(_moved(change) for change in layer.changes):
        top = _spectra(base, tuned, layer, settings)
        _last_pass(base, tuned, layer, settings, counts, top)
    return layer


def _moved(change: Change) -> bool:
    return bool(change.changed or change.relative)


def _stand_still(change: Change, base: Matrix, settings: Settings) -> None:
    """The figures of a matrix that did not change, which need no spectrum: 0, and so are those of no noise."""
    change.drift = 0.0
    for k in settings.k:
        n = min(k, *base.shape)
        sides = zip(("left", "right"), base.shape, strict=True)
        change.angles[k] = {side: [0.0] * n if n < size else [] for side, size in sides}
    if settings.control:
        change.noise_drift = 0.0
        change.noise_angle = _largest(change.angles[settings.k[0]])


def _first_pass(base: Matrix, tuned: Sequence[Matrix], layer: Layer) -> Tensor:
    """Count levels and changes, add up norms; returns weights a level."""
    counts = torch.zeros(LEVELS, dtype=torch.int64)
    rows = [torch.zeros(base.shape[0]) for _ in tuned]
    columns = [torch.zeros(base.shape[1]) for _ in tuned]
    squares, norms = [0.0] * len(tuned), [0.0] * len(tuned)
    together = torch.zeros(len(tuned) + 1, dtype=torch.int64)
    for a, b in blocks(base.shape):
        before = base.rows(a, b)
        counts += torch.bincount(levels(before).flatten(), minlength=LEVELS)
        times = torch.zeros(before.shape, dtype=torch.int16)
        for i, matrix in enumerate(tuned):
            after = matrix.rows(a, b)
            one, other = _comparable(base, matrix, before, after)
            squares[i] += float((other - one).square().sum(dtype=torch.float64))
            norms[i] += float(one.square().sum(dtype=torch.float64))
            mask = changed(before, after)
            times += mask
            rows[i][a:b] = mask.sum(1)
            columns[i] += mask.sum(0)
        together += torch.bincount(times.flatten(), minlength=len(together))
    layer.consensus = together.tolist()
    for i, (matrix, change) in enumerate(zip(tuned, layer.changes, strict=True)):
        if not (torch.isfinite(torch.tensor([squares[i], norms[i]])).all()):
            raise ModelError(f"{matrix.name} holds weights that are not finite: such a checkpoint is broken")
        change.changed = int(rows[i].double().sum())
        change.relative = (squares[i] / norms[i]) ** 0.5 if norms[i] > 0 else None
        change.rows = _quantiles(rows[i] / base.shape[1])
        change.columns = _quantiles(columns[i] / base.shape[0])
    return counts


def _spectra(base: Matrix, tuned: Sequence[Matrix], layer: Layer, settings: Settings) -> Spectrum:
    """Drift and rotation of every version; returns the base's leading part."""
    options = {"exact": settings.exact, "seed": settings.seed}
    known: dict[bool, Spectrum] = {}

    def of_base(rounded: bool) -> Spectrum:
        if rounded not in known:
            known[rounded] = decompose(_rounded(base) if rounded else base, max(settings.k), **options)
        return known[rounded]

    for matrix, change in zip(tuned, layer.changes, strict=True):
        if not _moved(change):
            continue
        rounded = _differ(base, matrix)
        before, start = of_base(rounded), _rounded(base) if rounded else base
        after = decompose(_rounded(matrix) if rounded else matrix, max(settings.k), **options)
        norm = float(before.values.norm()) if before.exact else _norm(start)
        change.drift, change.exact = drift(before, after, norm), before.exact and after.exact
        change.angles = {k: _angles(before, after, k) for k in settings.k}
        if settings.control and change.relative:
            noisy = decompose(
                with_noise(start, change.relative * norm, settings.seed), max(settings.k), **options
            )
            change.noise_drift = drift(before, noisy, norm)
            change.noise_angle = _largest(_angles(before, noisy, settings.k[0]))
    return of_base(False)


def _angles(before: Spectrum, after: Spectrum, k: int) -> dict[str, list[float]]:
    """Principal angles by side; none where the directions are all there are, which leaves nothing to turn."""
    k = min(k, before.k, after.k)
    sides = {"left": (before.left, after.left), "right": (before.right, after.right)}
    return {
        side: torch.rad2deg(angles(one[:, :k], other[:, :k])).tolist() if k < one.shape[0] else []
        for side, (one, other) in sides.items()
    }


def _largest(angles_of: dict[str, list[float]]) -> float | None:
    return max((angle for side in angles_of.values() for angle in side), default=None)


def _last_pass(
    base: Matrix,
    tuned: Sequence[Matrix],
    layer: Layer,
    settings: Settings,
    counts: Tensor,
    top: Spectrum,
) -> None:
    """Overlaps with the masks of the base and of the runs with each other, by quantile of |W0|."""
    bins, place = settings.bins, bins_of_levels(counts, settings.bins)
    limits = {alpha: low_level(counts, alpha) for alpha in settings.alpha}
    principal = {
        (k, alpha): _principal_threshold(base, top.head(k), alpha)
        for k in settings.k
        for alpha in settings.alpha
    }
    masters = {
        i: _update_threshold(base, matrix, layer.changes[i].changed)
        for i, matrix in enumerate(tuned)
        if _has_masters(base, matrix)
    }
    tally = _Tally(bins)
    for a, b in blocks(base.shape):
        before = base.rows(a, b)
        level = levels(before).long().flatten()
        tally.place = place[level]
        updates: dict[tuple[str, int], Tensor] = {}
        for i, matrix in enumerate(tuned):
            after = matrix.rows(a, b)
            updates["stored", i] = changed(before, after).flatten()
            if i in masters:
                updates["master", i] = (after.float() - before.float()).abs_().flatten() >= masters[i]
        masks: dict[tuple[str, int, float], Tensor] = {}
        for (k, alpha), limit in principal.items():
            large = principal_rows(top.head(k), a, b).flatten() >= limit
            low = level <= limits[alpha]
            found = {"principal": large, "low": low, "principal_not_low": large & ~low}
            masks |= {(name, k, alpha): mask for name, mask in found.items()}
        tally.add_block(masks, updates)
    rates = [noise_rates(counts, place, bins, change.changed) for change in layer.changes]
    tally.collect(layer, rates)


class _Tally:
    """Counts by quantile of |W0|: of masks, of updates, and of what they have in common."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.place = torch.empty(0, dtype=torch.int64)
        """Quantile of each weight of the block at hand."""
        self.counts: dict[object, Tensor] = {}
        self.masks: list[tuple[str, int, float]] = []
        self.updates: list[tuple[str, int]] = []

    def add_block(
        self, masks: dict[tuple[str, int, float], Tensor], updates: dict[tuple[str, int], Tensor]
    ) -> None:
        """Count a block's masks by (name, k, alpha) and updates by (precision, run)."""
        self.masks, self.updates = list(masks), list(updates)
        self._add("all", torch.ones_like(self.place, dtype=torch.bool))
        for which, mask in {**masks, **updates}.items():
            self._add(which, mask)
        for which, mask in masks.items():
            for update, moved in updates.items():
                self._add((which, update), mask & moved)
        runs = sorted({run for _, run in updates})
        for i, j in combinations(runs, 2):
            self._add((i, j), updates["stored", i] & updates["stored", j])

    def collect(self, layer: Layer, rates: list[Tensor]) -> None:
        """Write the overlaps and agreements into the layer.

        Args:
            layer: to be completed.
            rates: what rounded noise changes in each quantile [bins], a run.
        """
        total = self.counts["all"]
        for (weights, i), (mask, k, alpha) in product(self.updates, self.masks):
            which, update = (mask, k, alpha), (weights, i)
            # In float32 no rounding hides a step, so noise falls anywhere.
            noise = rates[i] if weights == "stored" else torch.ones_like(rates[i])
            both = self.counts[which, update]
            value = overlap(total, self.counts[which], self.counts[update], both, noise)
            layer.changes[i].overlaps.append(
                MaskOverlap(mask=mask, k=k, alpha=alpha, weights=weights, value=value)
            )
        for i, j in combinations(range(len(layer.changes)), 2):
            one, other = self.counts["stored", i], self.counts["stored", j]
            shared = float(self.counts[i, j].sum())
            matched, union = matched_jaccard(total, one, other)
            either = float(one.sum() + other.sum()) - shared
            layer.agreements.append(
                Agreement(
                    runs=(i, j), shared=shared, union=either, matched_shared=matched, matched_union=union
                )
            )

    def _add(self, name: object, mask: Tensor) -> None:
        found = torch.bincount(self.place[mask], minlength=self.bins)
        self.counts[name] = self.counts.get(name, 0) + found


def _principal_threshold(base: Matrix, top: Spectrum, alpha: float) -> float:
    found = Threshold(_each(base, lambda a, b: principal_rows(top, a, b)))
    return found.largest(round(alpha * base.parameters))


def _update_threshold(base: Matrix, tuned: Matrix, count: int) -> float:
    found = Threshold(_each(base, lambda a, b: (tuned.rows(a, b).float() - base.rows(a, b).float()).abs_()))
    return found.largest(min(count, base.parameters // 2))  # where nearly all change, all is no choice


def _each(base: Matrix, part: Callable[[int, int], Tensor]) -> Callable[[], Iterator[Tensor]]:
    return lambda: (part(a, b) for a, b in blocks(base.shape))


def _wide(matrix: Matrix) -> bool:
    return matrix.dtype in (torch.float32, torch.float64)


def _has_masters(base: Matrix, tuned: Matrix) -> bool:
    return _wide(tuned) and (_wide(base) or tuned.merged_onto is base)


def _differ(base: Matrix, tuned: Matrix) -> bool:
    """Whether precisions differ, so that a difference would be of rounding: then both are rounded to bfloat16."""
    return base.dtype != tuned.dtype and not _has_masters(base, tuned)


def _comparable(base: Matrix, tuned: Matrix, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    if _differ(base, tuned):
        before, after = stored(before), stored(after)
    return before.float(), after.float()


def _rounded(matrix: Matrix) -> Matrix:
    return replace(matrix, dtype=torch.bfloat16, rows=lambda a, b: stored(matrix.rows(a, b)))


def _norm(matrix: Matrix) -> float:
    parts = (matrix.rows(a, b).float().square().sum(dtype=torch.float64) for a, b in blocks(matrix.shape))
    return float(sum(parts)) ** 0.5


def _quantiles(rates: Tensor) -> list[float]:
    # torch.quantile refuses more than 16 million values.
    order = rates.sort().values
    return [round(float(order[round(q * (len(order) - 1))]), 6) for q in _QUANTILES]


def _short(matrix: Matrix) -> str:
    return str(matrix.dtype).removeprefix("torch.")
