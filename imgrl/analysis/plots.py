"""Plots of a diagnosis as PNG; matplotlib is the extra ``plots``."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from imgrl.errors import ConfigError

__all__ = ["panels"]

_NULLS = {"density_null": ("density null", ":"), "matched_null": ("magnitude-matched null", "--")}
_NOISE = {"density_null": ("density null", ":"), "noise_null": ("rounding-noise null", "--")}


def panels(report: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Draw a report (see :func:`imgrl.analysis.report.document`): captions and PNG files.

    Raises:
        ConfigError: if matplotlib is missing.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'imgrl[plots]', or leave out --html") from error
    drawings: list[tuple[str, Callable[[Any, dict[str, Any]], bool]]] = [
        ("Share of the update on the principal mask, matrix by matrix", _principal),
        ("Share of the update on the low-magnitude mask", _low),
        ("Stored weights that did not change", _sparsity),
        ("Spectral drift, beside that of Gaussian noise of the same size", _drift),
        ("Largest principal angle, beside that of the same noise", _largest),
        ("All principal angles of the most rotated matrix", _angles),
        ("Agreement of runs: which weights changed", _agreement),
    ]
    found = []
    for caption, draw in drawings:
        figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
        if draw(axis, report):
            axis.grid(alpha=0.3)
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=110)
            found.append((caption, file.getvalue()))
        plt.close(figure)
    return found


def _matrices(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [layer for layer in report["layers"] if any(run["overlaps"] for run in layer["runs"])]


def _series(report: dict[str, Any], value: Callable[[dict[str, Any]], float | None]) -> list[list[float]]:
    """One list a run: a value of every matrix, NaN where there is none."""
    return [
        [math.nan if (found := value(layer["runs"][i])) is None else found for layer in _matrices(report)]
        for i in range(len(report["tuned"]))
    ]


def _lines(axis: Any, report: dict[str, Any], series: Sequence[Sequence[float]], label: str) -> bool:
    if not _matrices(report):
        return False
    for i, values in enumerate(series):
        label_i = "observed" if len(series) == 1 else _run(report, i)
        axis.plot(values, ".-", lw=0.8, ms=4, color=f"C{i}", label=label_i)
    axis.set_xlabel("matrix, in the table's order")
    axis.set_ylabel(label)
    if len(series) > 1:
        axis.legend(fontsize=7)
    return True


def _run(report: dict[str, Any], i: int) -> str:
    name = report["tuned"][i]
    return f"{i + 1}: …{name[-24:]}" if len(name) > 25 else f"{i + 1}: {name}"


def _share(run: dict[str, Any], mask: str, key: str) -> float | None:
    return next((o[key] for o in run["overlaps"] if o["mask"] == mask and o["weights"] == "stored"), None)


def _overlap(axis: Any, report: dict[str, Any], mask: str, nulls: dict[str, tuple[str, str]]) -> bool:
    if not _matrices(report):
        return False
    observed = _series(report, lambda run: _share(run, mask, "observed"))
    for i, values in enumerate(observed):
        label = "observed" if len(observed) == 1 else _run(report, i)
        axis.plot(values, "o", ms=3, color=f"C{i}", label=label)
    for number, (key, (label, style)) in enumerate(nulls.items()):
        for i, values in enumerate(_series(report, lambda run, key=key: _share(run, mask, key))):
            color = "0.5" if number == 0 else f"C{i}"
            axis.plot(values, style, lw=1.2, color=color, label=label if i == 0 else None)
    axis.set_xlabel("matrix, in the table's order")
    axis.set_ylabel("share of the update")
    axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
    axis.legend(fontsize=7)
    return True


def _principal(axis: Any, report: dict[str, Any]) -> bool:
    return _overlap(axis, report, "principal", _NULLS)


def _low(axis: Any, report: dict[str, Any]) -> bool:
    return _overlap(axis, report, "low", _NOISE)


def _sparsity(axis: Any, report: dict[str, Any]) -> bool:
    axis.set_ylim(-0.02, 1.02)
    return _lines(axis, report, _series(report, lambda run: run["sparsity"]), "sparsity")


def _drift(axis: Any, report: dict[str, Any]) -> bool:
    return _beside_noise(axis, report, "drift", "noise_drift", "drift")


def _largest(axis: Any, report: dict[str, Any]) -> bool:
    return _beside_noise(axis, report, "largest_angle", "noise_angle", "degrees")


def _beside_noise(axis: Any, report: dict[str, Any], key: str, noise: str, label: str) -> bool:
    if not _lines(axis, report, _series(report, lambda run: run[key]), label):
        return False
    for i, values in enumerate(_series(report, lambda run: run[noise])):
        axis.plot(values, "--", lw=1, color=f"C{i}", label="noise of equal size" if i == 0 else None)
    axis.legend(fontsize=7)
    return True


def _angles(axis: Any, report: dict[str, Any]) -> bool:
    if not any(run["largest_angle"] is not None for layer in _matrices(report) for run in layer["runs"]):
        return False
    layer = max(_matrices(report), key=lambda layer: max(run["largest_angle"] or 0 for run in layer["runs"]))
    for i, run in enumerate(layer["runs"]):
        for side, style in (("left", "-"), ("right", "--")):
            found = next(iter(run["angles"].values()), {}).get(side, [])
            name = side if len(layer["runs"]) == 1 else f"{side}, {_run(report, i)}"
            axis.plot(range(1, len(found) + 1), found, style, color=f"C{i}", label=name)
    axis.set_title(layer["name"], fontsize=8)
    axis.set_xlabel("direction, in ascending order of its angle")
    axis.set_ylabel("degrees")
    axis.legend(fontsize=7)
    return True


def _agreement(axis: Any, report: dict[str, Any]) -> bool:
    rows = report["agreement"]
    keys = {
        "jaccard": "observed",
        "bernoulli_null": "Bernoulli null",
        "matched_null": "magnitude-matched null",
    }
    for number, (key, label) in enumerate(keys.items()):
        places = [i + 0.25 * (number - 1) for i in range(len(rows))]
        axis.bar(
            places, [row[key] or 0 for row in rows], 0.24, label=label, color=("C0", "0.7", "C1")[number]
        )
    axis.set_xticks(range(len(rows)), ["–".join(str(run + 1) for run in row["runs"]) for row in rows])
    axis.set_xlabel("runs compared")
    axis.set_ylabel("Jaccard index")
    axis.set_xlim(-1, len(rows))
    axis.set_ylim(0, 1.3)
    if rows:
        axis.legend(fontsize=7, ncols=3)
    return bool(rows)
