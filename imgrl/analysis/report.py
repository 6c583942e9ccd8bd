"""Figures of all matrices put together: one document for JSON, tables and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from imgrl.analysis.compare import Pairing
from imgrl.analysis.figures import Agreement, Change, Layer, MaskOverlap, Settings
from imgrl.analysis.nulls import Overlap, bernoulli_jaccard

__all__ = ["document"]

_NOTHING = Overlap(hits=0, changed=0, by_density=0, by_magnitude=0, by_noise=0, variance=0)
EXPLANATION = (
    "Weights are compared as bfloat16 stores them. over_density = observed / density baseline, over_matched = "
    "observed / magnitude-matched null, over_noise = observed / rounded Gaussian noise that changes as many weights. "
    "For the low mask the matched null equals the observation by construction, so read over_noise there. A ratio "
    "near 1 says that rounding and the sizes of the weights explain what is seen. noise_drift and noise_angle are "
    "those of Gaussian noise of the update's size. There is no angle where k takes in all directions of a matrix."
)
ROTATED = (
    "Beside the run from the rotated base: which weights both it and a run from the base changed. matched_null is what "
    "the sizes of the weights in the two bases alone explain. Where a rotation has edited a matrix it falls towards "
    "bernoulli_null, chance, and so does the Jaccard index of runs that learnt nothing; what training chose shows in a "
    "Jaccard index above matched_null in the matrices that are the same in both bases, and not in the edited ones. "
    "Runs from one base in float32 also share how near each weight lies to a rounding boundary, which matched_null "
    "does not know: where both bases are the same it is then too low (noise of 1e-4 on tiny-lm and tiny-sd3 lay 2 and "
    "10 % above it). Runs that start from weights already rounded to bfloat16 are free of this."
)


TOGETHER = ("changed_share", "rotated_changed_share", "jaccard", "bernoulli_null", "matched_null")
"""Figures of a run beside one from a rotated base, in the order of a table."""


def document(
    pairing: Pairing,
    layers: Sequence[Layer],
    settings: Settings,
    *,
    base: str,
    tuned: Sequence[str],
    rotated: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Everything measured as plain data.

    Args:
        pairing: what was compared.
        layers: its measured tensors.
        settings: how they were measured.
        base: how the base is called.
        tuned: how its trained versions are called.
        rotated: how the rotated base and the run from it are called, where they were compared.
    """
    return {
        "base": base,
        "tuned": list(tuned),
        "settings": asdict(settings),
        "explanation": EXPLANATION,
        "notes": list(pairing.notes),
        "totals": [_total(pairing, layers, i) for i in range(len(tuned))],
        "agreement": _agreement(layers, len(tuned)),
        "rotated": None if rotated is None else _rotated(layers, len(tuned), rotated),
        "layers": [_layer(layer) for layer in layers],
    }


def _total(pairing: Pairing, layers: Sequence[Layer], run: int) -> dict[str, Any]:
    matrices = [layer for layer in layers if layer.changes[run].relative is not None and _is_matrix(layer)]
    measured = sum(layer.parameters for layer in layers)
    moved = sum(layer.changes[run].changed for layer in layers)
    within = sum(layer.parameters for layer in matrices)
    changes = [layer.changes[run] for layer in matrices]
    return {
        "parameters": measured + pairing.untouched,
        "untouched": pairing.untouched,
        "changed": moved,
        "sparsity": 1 - moved / max(1, measured + pairing.untouched),
        "matrices": len(matrices),
        "sparsity_of_matrices": 1 - sum(change.changed for change in changes) / max(1, within),
        "relative_update": _mean([change.relative for change in changes]),
        "drift": _mean([change.drift for change in changes]),
        "drift_over_update": _mean([_share(change) for change in changes]),
        "noise_drift": _mean([change.noise_drift for change in changes]),
        "largest_angle": _mean([_largest(change) for change in changes]),
        "noise_angle": _mean([change.noise_angle for change in changes]),
        "overlaps": _pooled([overlap for change in changes for overlap in change.overlaps]),
    }


def _pooled(overlaps: Sequence[MaskOverlap]) -> list[dict[str, Any]]:
    sums: dict[tuple[str, str, int, float], Overlap] = {}
    for each in overlaps:
        key = (each.weights, each.mask, each.k, each.alpha)
        sums[key] = sums.get(key, _NOTHING) + each.value
    return [
        {"weights": weights, "mask": mask, "k": k, "alpha": alpha, **value.report()}
        for (weights, mask, k, alpha), value in sums.items()
    ]


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "shape": list(layer.shape),
        "dtype": layer.dtype,
        "parameters": layer.parameters,
        "runs": [_change(layer, change) for change in layer.changes],
        "agreement": [_jaccard(layer.parameters, layer.changes, each) for each in layer.agreements],
        "changed_by": layer.consensus,
        "rotated": None if layer.rotated is None else _beside_rotated(layer),
    }


def _change(layer: Layer, change: Change) -> dict[str, Any]:
    return {
        "changed": change.changed,
        "sparsity": 1 - change.changed / layer.parameters,
        "relative_update": change.relative,
        "drift": change.drift,
        "drift_is_exact": change.exact,
        "drift_over_update": _share(change),
        "noise_drift": change.noise_drift,
        "largest_angle": _largest(change),
        "noise_angle": change.noise_angle,
        "angles": {
            str(k): {side: [round(angle, 5) for angle in found] for side, found in sides.items()}
            for k, sides in change.angles.items()
        },
        "overlaps": _pooled(change.overlaps),
        "changed_in_rows": change.rows,
        "changed_in_columns": change.columns,
    }


def _jaccard(parameters: int, changes: Sequence[Change], agreement: Agreement) -> dict[str, Any]:
    p, q = (changes[run].changed / parameters for run in agreement.runs)
    return {
        "runs": list(agreement.runs),
        "jaccard": _ratio(agreement.shared, agreement.union),
        "bernoulli_null": bernoulli_jaccard(p, q),
        "matched_null": _ratio(agreement.matched_shared, agreement.matched_union),
    }


def _agreement(layers: Sequence[Layer], runs: int) -> list[dict[str, Any]]:
    """Over all matrices: sums of intersections and unions, observed and expected."""
    rows = []
    for pair in ((i, j) for i in range(runs) for j in range(i + 1, runs)):
        sums = {"shared": 0.0, "union": 0.0, "chance": 0.0, "either": 0.0, "matched": 0.0, "any": 0.0}
        for layer in layers:
            for each in (each for each in layer.agreements if each.runs == pair):
                p, q = (layer.changes[run].changed for run in pair)
                chance = p * q / layer.parameters
                sums["shared"] += each.shared
                sums["union"] += each.union
                sums["chance"] += chance
                sums["either"] += p + q - chance
                sums["matched"] += each.matched_shared
                sums["any"] += each.matched_union
        rows.append(
            {
                "runs": list(pair),
                "jaccard": _ratio(sums["shared"], sums["union"]),
                "bernoulli_null": _ratio(sums["chance"], sums["either"]),
                "matched_null": _ratio(sums["matched"], sums["any"]),
            }
        )
    return rows


def _rotated(layers: Sequence[Layer], runs: int, names: tuple[str, str]) -> dict[str, Any]:
    """Each run beside the one from the rotated base, over edited matrices, those that are the same, and all."""
    found = [layer for layer in layers if layer.rotated is not None]
    edited = [layer for layer in found if layer.rotated and layer.rotated.edited]
    same = [layer for layer in found if layer.rotated and not layer.rotated.edited]
    return {
        "base": names[0],
        "tuned": names[1],
        "explanation": ROTATED,
        "agreement": [
            {"run": i, "matrices": name, "count": len(own), **_together(own, i)}
            for i in range(runs)
            for name, own in (("edited", edited), ("same", same), ("all", found))
        ],
    }


def _beside_rotated(layer: Layer) -> dict[str, Any]:
    assert layer.rotated is not None
    runs = [_together([layer], i) for i in range(len(layer.changes))]
    return {"edited": layer.rotated.edited, "changed": layer.rotated.changed, "runs": runs}


def _together(layers: Sequence[Layer], run: int) -> dict[str, float | None]:
    """A run and the one from the rotated base: sums of intersections and unions, observed and expected."""
    weights = ours = theirs = 0
    shared = chance = matched = 0.0
    for layer in layers:
        assert layer.rotated is not None
        one, other = layer.changes[run].changed, layer.rotated.changed
        weights, ours, theirs = weights + layer.parameters, ours + one, theirs + other
        shared += layer.rotated.shared[run]
        chance += one * other / layer.parameters
        matched += layer.rotated.matched[run]
    return {
        "changed_share": _ratio(ours, weights),
        "rotated_changed_share": _ratio(theirs, weights),
        "jaccard": _ratio(shared, ours + theirs - shared),
        "bernoulli_null": _ratio(chance, ours + theirs - chance),
        "matched_null": _ratio(matched, ours + theirs - matched),
    }


def _is_matrix(layer: Layer) -> bool:
    return len(layer.shape) > 1 and layer.shape[0] > 1 and layer.parameters > layer.shape[0]


def _largest(change: Change) -> float | None:
    """Largest principal angle in degrees of either side, at the first k."""
    found = [angle for side in next(iter(change.angles.values()), {}).values() for angle in side]
    return max(found, default=None)


def _share(change: Change) -> float | None:
    """Drift over its upper bound, the relative update: comparable between updates of different sizes."""
    return change.drift / change.relative if change.drift is not None and change.relative else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
