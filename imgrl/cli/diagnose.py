"""``imgrl diagnose``: what training changed in the weights, beside what rounding alone would have changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgrl.cli.common import check_writable, interactive, screen
from imgrl.errors import ConfigError

if TYPE_CHECKING:
    from imgrl.analysis import Layer, Pairing, Settings

__all__ = ["diagnose"]

_MOST_RUNS = 8
_SHOWN = 40
_NULLS = ("density", "matched", "noise")


def diagnose(
    base: Annotated[
        str, typer.Argument(help="The model before: a safetensors file, a model folder, or a bundled model.")
    ],
    tuned: Annotated[
        list[str],
        typer.Argument(
            metavar="TUNED [MORE]...",
            help="The same after training, or LoRAs trained on it; several are compared.",
        ),
    ],
    rotated: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="BASE2 TUNED2",
            help="What `imgrl rotate` made of BASE, and a run from that: do they change the same weights?",
        ),
    ] = None,
    k: Annotated[
        str, typer.Option(help="Principal directions, several as 32,64,128; clipped to each matrix's rank.")
    ] = "64",
    alpha: Annotated[
        str, typer.Option(help="Fraction of the weights in a mask, several as .1,.3,.5.")
    ] = "0.3",
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Whole spectra of large matrices too; a square bfloat16 one then takes four times its memory.",
        ),
    ] = False,
    layers: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Only tensors such as '*.attn.*', or containing 'to_q'."),
    ] = None,
    control: Annotated[
        bool,
        typer.Option(help="Also drift and angles of noise of the update's size; takes half as long again."),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the randomised decomposition.")] = 0,
    out: Annotated[Path | None, typer.Option("--json", help="JSON file for every figure.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Page with plots that opens offline.")] = None,
) -> None:
    """Compare checkpoints: sparsity, spectral drift, rotation, and which weights moved, beside their nulls."""
    if len(tuned) > _MOST_RUNS:
        raise ConfigError(
            f"at most {_MOST_RUNS} trained checkpoints are compared at once, but {len(tuned)} were given"
        )
    for file, option in ((out, "--json"), (html, "--html")):
        if file is not None:
            check_writable(file, option)
    if html is not None:
        _need_plots()
    from imgrl.analysis import Settings, document, pair

    settings = Settings(
        k=tuple(int(part) for part in _numbers(k, "--k", whole=True)),
        alpha=tuple(_numbers(alpha, "--alpha", whole=False)),
        exact=True if exact else None,
        control=control,
        seed=seed,
    )
    turned = None if rotated is None else (_path(rotated[0]), _path(rotated[1]))
    pairing = pair(_path(base), [_path(name) for name in tuned], layers, rotated=turned)
    measured = _measure(pairing, settings)
    report = document(pairing, measured, settings, base=base, tuned=tuned, rotated=rotated)
    if out is not None:
        out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if html is not None:
        from imgrl.analysis.page import page

        html.write_text(page(report), encoding="utf-8")
    _print(report)


def _need_plots() -> None:
    """Say that matplotlib is missing before minutes of work."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ConfigError(
            "--html draws plots with matplotlib: pip install 'imgrl[plots]', or leave out --html"
        )


def _numbers(text: str, option: str, *, whole: bool) -> list[float]:
    try:
        return [int(part) if whole else float(part) for part in text.split(",")]
    except ValueError:
        kind = "whole numbers such as 32,64" if whole else "fractions such as .1,.3"
        raise ConfigError(f"{option} must be {kind}, but {text!r} was given") from None


def _path(name: str) -> Path:
    """As given, else a bundled model of that name."""
    from imgrl.resources import resource_root

    path = Path(name)
    bundled = None if path.exists() or path.name != name else resource_root("assets") / name
    return bundled if bundled is not None and bundled.is_dir() else path


def _measure(pairing: Pairing, settings: Settings) -> list[Layer]:
    """Measure every tensor under a progress bar that counts weights."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from imgrl.analysis import compare

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen(stderr=True), transient=True, disable=not interactive()) as bar:
        task = bar.add_task("reading", total=max(1, pairing.parameters))

        def moved(name: str, parameters: int) -> None:
            bar.update(task, advance=parameters, description=name[-48:])

        return list(compare(pairing, settings, moved))


def _print(report: dict[str, Any]) -> None:
    console = screen()
    for note in report["notes"]:
        screen(stderr=True).print(note, markup=False)
    for i, name in enumerate(report["tuned"]):
        console.print(_layer_table(report, i, name))
        if (more := len(_matrices(report)) - _SHOWN) > 0:
            console.print(f"… {more} more in --json and --html", markup=False)
        _print_totals(console, report["totals"][i])
    for row in report["agreement"]:
        one, other = (run + 1 for run in row["runs"])
        console.print(
            f"runs {one} and {other}: Jaccard {_n(row['jaccard'])} of the changed weights, by chance "
            f"{_n(row['bernoulli_null'])}, given |W| {_n(row['matched_null'])}",
            markup=False,
        )
    if report["rotated"] is not None:
        for i, name in enumerate(report["tuned"]):
            console.print(_rotated_table(report, i, name))
    console.print(report["explanation"], markup=False, style="dim")
    if report["rotated"] is not None:
        console.print(report["rotated"]["explanation"], markup=False, style="dim")


def _matrices(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [layer for layer in report["layers"] if len(layer["shape"]) > 1]


def _layer_table(report: dict[str, Any], run: int, name: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{report['base']} → {name}"), title_justify="left")
    table.add_column("matrix")
    for column in (
        "sparsity",
        "update",
        "drift",
        "angle°",
        "principal",
        "/density",
        "/matched",
        "low",
        "/density",
        "/noise",
    ):
        table.add_column(column, justify="right")
    for layer in _matrices(report)[:_SHOWN]:
        figures = layer["runs"][run]
        found = {o["mask"]: o for o in reversed(figures["overlaps"]) if o["weights"] == "stored"}
        principal, low = found.get("principal", {}), found.get("low", {})
        drift = _n(figures["drift"]) if figures["drift_is_exact"] else f"≥{_n(figures['drift'])}"
        cells = [_n(figures["sparsity"]), _n(figures["relative_update"]), drift, _n(figures["largest_angle"])]
        cells += [_n(principal.get(key)) for key in ("observed", "over_density", "over_matched")]
        cells += [_n(low.get(key)) for key in ("observed", "over_density", "over_noise")]
        table.add_row(Text(layer["name"]), *cells)
    return table


def _rotated_table(report: dict[str, Any], run: int, name: str) -> Any:
    """Every matrix, then edited ones, those that are the same in both bases, and all."""
    from rich.table import Table
    from rich.text import Text

    from imgrl.analysis.report import TOGETHER

    found = report["rotated"]
    title = f"{report['base']} → {name} beside {found['base']} → {found['tuned']}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("matrix")
    table.add_column("base")
    for column in ("changed", "rotated", "Jaccard", "by chance", "given |W|"):
        table.add_column(column, justify="right")
    compared = [layer for layer in report["layers"] if layer["rotated"] is not None]
    for layer in compared[:_SHOWN]:
        own = layer["rotated"]["runs"][run]
        kind = "edited" if layer["rotated"]["edited"] else "same"
        table.add_row(Text(layer["name"]), kind, *(_n(own[key]) for key in TOGETHER))
    if len(compared) > _SHOWN:
        table.add_row(f"… {len(compared) - _SHOWN} more, see --json and --html")
    table.add_section()
    for row in (row for row in found["agreement"] if row["run"] == run):
        kind = "" if row["matrices"] == "all" else row["matrices"]
        table.add_row(f"all {row['count']}", kind, *(_n(row[key]) for key in TOGETHER))
    return table


def _print_totals(console: Any, total: dict[str, Any]) -> None:
    measured = "1 measured matrix" if total["matrices"] == 1 else f"{total['matrices']} measured matrices"
    console.print(
        f"sparsity {_n(total['sparsity'])} of {total['parameters']:,} parameters ({_n(total['sparsity_of_matrices'])} "
        f"of {measured}), mean relative update {_n(total['relative_update'])}, "
        f"drift {_n(total['drift'])} (noise of equal size {_n(total['noise_drift'])}), "
        f"largest angle {_angle(total['largest_angle'])} ({_angle(total['noise_angle'])})",
        markup=False,
    )
    for o in total["overlaps"]:
        nulls = ", ".join(f"{name} {_n(o[f'{name}_null'])} (x{_n(o[f'over_{name}'])})" for name in _NULLS)
        console.print(
            f"  {o['mask']} mask, {o['weights']} weights, k {o['k']}, alpha {o['alpha']:g}: {_n(o['observed'])} of "
            f"the update; nulls: {nulls}",
            markup=False,
        )


def _angle(degrees: float | None) -> str:
    return _n(degrees) if degrees is None else f"{_n(degrees)}°"


def _n(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
