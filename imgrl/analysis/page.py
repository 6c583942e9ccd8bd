"""A diagnosis as one HTML page that opens offline: totals, plots, a table of all matrices."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from imgrl.analysis.plots import panels
from imgrl.analysis.report import TOGETHER

__all__ = ["page", "short"]

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1180px;padding:0 1em;color:#222}
h1{font-size:1.5em} h2{font-size:1.15em;margin-top:1.8em} .note{color:#555}
table{border-collapse:collapse;font-size:13px} td,th{padding:.2em .7em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left} thead th{position:sticky;top:0;background:#f6f6f6}
.wide{overflow:auto;max-height:36em;border:1px solid #ddd}
.plots{display:flex;flex-wrap:wrap;gap:1em} figure{margin:0;width:560px;max-width:100%} img{width:100%}
figcaption{font-size:13px;color:#444}
"""
_TOTALS = {
    "sparsity": "sparsity",
    "sparsity_of_matrices": "sparsity of measured matrices",
    "relative_update": "relative update (mean)",
    "drift": "spectral drift (mean)",
    "drift_over_update": "drift / relative update (mean)",
    "noise_drift": "drift of noise of equal size (mean)",
    "largest_angle": "largest angle, degrees (mean)",
    "noise_angle": "largest angle under that noise (mean)",
}
_OVERLAP = (
    "observed",
    "density_null",
    "matched_null",
    "noise_null",
    "over_density",
    "over_matched",
    "over_noise",
)
_MASKS = {"principal": "principal", "low": "low magnitude", "principal_not_low": "principal, not low"}


def short(value: Any) -> str:
    """A number as tables show it."""
    if value is None:
        return "–"
    return (
        f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )


def page(report: dict[str, Any]) -> str:
    """Render a report (see :func:`imgrl.analysis.report.document`).

    Raises:
        ConfigError: if matplotlib is missing.
    """
    plots = "".join(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, png in panels(report)
    )
    names = "".join(f"<li>{escape(name)}</li>" for name in report["tuned"])
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report["notes"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>imgrl diagnose</title><style>{_STYLE}'
        f"</style></head><body><h1>What training changed in {escape(report['base'])}</h1><ol>{names}</ol>"
        f"<p>{escape(report['explanation'])}</p>{notes}"
        f"<h2>Totals</h2>{_totals(report)}<h2>Where the update lies</h2>{_overlaps(report)}{_agreement(report)}"
        f"{_rotated(report)}"
        f'<h2>Plots</h2><div class="plots">{plots}</div><h2>Matrices</h2><div class="wide">{_layers(report)}</div>'
        "</body></html>\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(short(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _totals(report: dict[str, Any]) -> str:
    head = ["", *(f"run {i + 1}" for i in range(len(report["tuned"])))]
    rows = [["parameters", *(total["parameters"] for total in report["totals"])]]
    rows += [["changed", *(total["changed"] for total in report["totals"])]]
    rows += [[label, *(total[key] for total in report["totals"])] for key, label in _TOTALS.items()]
    return _table(head, rows)


def _overlaps(report: dict[str, Any]) -> str:
    rows = [
        (f"{_MASKS[o['mask']]}, {o['weights']}", i + 1, o["k"], o["alpha"], *(o[key] for key in _OVERLAP))
        for i, total in enumerate(report["totals"])
        for o in total["overlaps"]
    ]
    return _table(["mask, weights", "run", "k", "alpha", *(key.replace("_", " ") for key in _OVERLAP)], rows)


def _agreement(report: dict[str, Any]) -> str:
    if not report["agreement"]:
        return ""
    keys = ("jaccard", "bernoulli_null", "matched_null")
    rows = [
        (" and ".join(str(run + 1) for run in row["runs"]), *(row[key] for key in keys))
        for row in report["agreement"]
    ]
    return "<h2>Agreement of runs</h2>" + _table(["runs", *(key.replace("_", " ") for key in keys)], rows)


def _rotated(report: dict[str, Any]) -> str:
    """Runs beside the one from the rotated base: groups of matrices, then each matrix."""
    found = report["rotated"]
    if found is None:
        return ""
    head = [key.replace("_", " ") for key in TOGETHER]
    groups = [
        (row["matrices"], row["run"] + 1, row["count"], *(row[key] for key in TOGETHER))
        for row in found["agreement"]
    ]
    matrices = [
        (
            layer["name"],
            i + 1,
            "edited" if layer["rotated"]["edited"] else "same",
            *(run[key] for key in TOGETHER),
        )
        for layer in report["layers"]
        if layer["rotated"] is not None
        for i, run in enumerate(layer["rotated"]["runs"])
    ]
    return (
        f"<h2>Beside {escape(found['tuned'])}, trained from the rotated {escape(found['base'])}</h2>"
        f'<p class="note">{escape(found["explanation"])}</p>{_table(["matrices", "run", "count", *head], groups)}'
        f'<p></p><div class="wide">{_table(["matrix", "run", "in both bases", *head], matrices)}</div>'
    )


def _layers(report: dict[str, Any]) -> str:
    head = [
        "matrix",
        "run",
        "shape",
        "sparsity",
        "relative update",
        "drift",
        "of noise",
        "largest angle",
        "of noise",
    ]
    for mask in ("principal", "low"):
        head += [f"{mask}: {part}" for part in ("observed", "/ density", "/ matched", "/ noise")]
    return _table(head, (_row(layer, i) for layer in report["layers"] for i in range(len(layer["runs"]))))


def _row(layer: dict[str, Any], i: int) -> list[Any]:
    run = layer["runs"][i]
    drift = short(run["drift"]) if run["drift_is_exact"] else f"≥ {short(run['drift'])}"
    row = [layer["name"], i + 1, "x".join(map(str, layer["shape"])), run["sparsity"], run["relative_update"]]
    row += [drift, run["noise_drift"], run["largest_angle"], run["noise_angle"]]
    for mask in ("principal", "low"):
        found = next((o for o in run["overlaps"] if o["mask"] == mask), {})
        row += [found.get(key) for key in ("observed", "over_density", "over_matched", "over_noise")]
    return row
