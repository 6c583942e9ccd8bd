"""``imgrl rewards``: the built-in rewards."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from imgrl.cli.common import AsJson, print_json, screen

if TYPE_CHECKING:
    from imgrl.rewards.registry import RewardEntry

__all__ = ["rewards"]


def rewards(as_json: AsJson = False) -> None:
    """List the built-in rewards and what each needs."""
    from rich.markup import escape
    from rich.table import Table

    from imgrl.rewards.registry import REWARDS, RewardEntry

    if as_json:
        found = {"missing": RewardEntry.missing, "absent": RewardEntry.absent}
        print_json(
            {
                name: {**asdict(entry), **{key: tell(entry) for key, tell in found.items()}}
                for name, entry in REWARDS.items()
            }
        )
        return
    table = Table()
    for column in ("reward", "measures", "here", "weights", "licence"):
        table.add_column(column, overflow="fold")
    for name, entry in REWARDS.items():
        table.add_row(name, entry.description, escape(_here(entry)), entry.weights, entry.licence)
    screen().print(table)
    screen().print(
        "A reward of your own: use: path/file.py:function, called as function(images, prompts, **columns).\n"
        "For language models it is called as function(completions, prompts, **columns)."
    )


def _here(entry: RewardEntry) -> str:
    """Whether it can run on this machine, and what is lacking."""
    if not entry.available():
        return f"no: pip install 'imgrl[{entry.extra}]'"
    return "yes, but its weights are not in the hub cache yet" if entry.absent() else "yes"
