"""Which command a recipe is for, told by its keys: images and language models have recipes of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from imgrl.config.tree import Node
from imgrl.errors import ConfigError
from imgrl.recipe import Recipe
from imgrl.recipe_text import TextRecipe

__all__ = ["is_for_texts", "refuse_other_kind"]

_SHOWN = 3


def is_for_texts(tree: Node) -> bool:
    """Whether a recipe, as its file has it, is one for language models.

    It is for those that know more of its keys; what both know as well is for images.
    """
    return _is_other(_strangers(Recipe, tree), _strangers(TextRecipe, tree))


def refuse_other_kind(tree: Node, kind: type[Recipe] | type[TextRecipe], name: str) -> None:
    """Refuse a recipe of the other kind, before one of its keys is called unknown.

    Args:
        tree: the recipe as its file has it, without overrides: a slip in these does not change what it is for.
        kind: what the command expects.
        name: how the user calls the recipe.

    Raises:
        ConfigError: naming the keys that decided and the command to use.
    """
    other, what, command = (Recipe, "images", "imgrl train")
    if kind is Recipe:
        other, what, command = (TextRecipe, "language models", "imgrl lm train")
    unknown = _strangers(kind, tree)
    if _is_other(unknown, _strangers(other, tree)):
        more = ", …" if unknown[_SHOWN:] else ""
        file = Path(name)
        of_a_run = file.name == "config.yaml" and (file.parent / "metrics.jsonl").is_file()
        given = f"--resume {file.parent}" if of_a_run else name
        raise ConfigError(
            f"recipe {name!r} is one for {what}, as its keys say ({', '.join(unknown[:_SHOWN])}{more}), which this "
            f"command does not take; `{command} {given}` runs it"
        )


def _is_other(unknown: list[str], to_other: list[str]) -> bool:
    """Whether unknown keys say so; one within a section is more likely a slip."""
    slip = len(unknown) == 1 and "." in unknown[0] and not unknown[0].endswith(".name")
    return len(unknown) > len(to_other) and not slip


def _strangers(kind: Any, node: Node, path: str = "") -> list[str]:
    """Keys, of all depths, that a recipe of this kind does not have; a name that it does not know counts as one."""
    if not isinstance(node.value, dict):
        return []
    hints = get_type_hints(kind)
    found: list[str] = []
    for key, entry in node.value.items():
        place = f"{path}.{key}" if path else key
        if key not in hints:
            found.append(place)
        elif dataclasses.is_dataclass(hints[key]):
            found += _strangers(hints[key], entry, place)
        else:
            found += _stranger_of_names(hints[key], entry, place)
    return found


def _stranger_of_names(kind: Any, node: Node, path: str) -> list[str]:
    """The name of an objective, say, that is none of this kind's."""
    members = get_args(kind) if get_origin(kind) is not None else ()
    names = {getattr(member, "name", None) for member in members} - {None}
    given = node.value.get("name") if isinstance(node.value, dict) else node
    known = given is None or not isinstance(given.value, str) or given.value in names
    return [] if known or not names else [f"{path}.name"]
