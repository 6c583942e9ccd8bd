"""One table of all objectives: what each stays close to, how the distance is measured, and where it enters."""

from __future__ import annotations

from imgrl.objectives.image import OBJECTIVES
from imgrl.objectives.text import TEXT_OBJECTIVES

__all__ = ["overview", "overview_markdown"]


def overview() -> list[tuple[str, ...]]:
    """Rows of kind, name, anchor, discrepancy and where it enters, as the objectives declare them."""
    rooms = (("image", OBJECTIVES), ("text", TEXT_OBJECTIVES))
    return [(room, name, *kind.anchored) for room, kinds in rooms for name, kind in kinds.items()]


def overview_markdown() -> str:
    """The same as a Markdown table."""
    head = ("", "objective", "anchor", "discrepancy", "where it enters")
    rows = [head, ("---",) * 5, *((kind, f"`{name}`", *rest) for kind, name, *rest in overview())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
