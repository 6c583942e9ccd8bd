"""``imgrl rewards``: the built-in rewards."""

from __future__ import annotations

from dataclasses import asdict

from imgrl.cli.common import AsJson, print_json, screen

__all__ = ["rewards"]


def rewards(as_json: AsJson = False) -> None:
    """List the built-in rewards and what each needs."""
    from rich.table import Table

    from imgrl.rewards.registry import REWARDS

    if as_json:
        print_json({name: {**asdict(entry), "missing": entry.missing()} for name, entry in REWARDS.items()})
        return
    table = Table()
    for column in ("reward", "measures", "here", "weights", "licence"):
        table.add_column(column, overflow="fold")
    for name, entry in REWARDS.items():
        here = "yes" if entry.available() else f"no: pip install 'imgrl[[{entry.extra}]'"
        table.add_row(name, entry.description, here.replace("[[", "\\["), entry.weights, entry.licence)
    screen().print(table)
    screen().print(
        "A reward of your own: use: path/file.py:function, called as function(images, prompts, **columns)."
    )
