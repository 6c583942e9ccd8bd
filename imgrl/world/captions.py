"""Imperfect captions, as pictures on the web have them: some of the attributes that they name are wrong.

A model trained on them draws better than it obeys, which is what makes a base model worth aligning: without guidance
it spreads over what such a caption might have meant.
"""

from __future__ import annotations

import string
from collections.abc import Container
from functools import cache
from typing import Any

import numpy as np

from imgrl.types import Prompt
from imgrl.world.prompts import prompts, sign
from imgrl.world.vocabulary import COLORS, COUNT_WORDS, RELATIONS, SHAPES, TEXT_TASK

__all__ = ["attributes", "imperfect_caption"]

_KINDS = (
    tuple(COLORS),
    SHAPES,
    RELATIONS,
    tuple(COUNT_WORDS),
    tuple(string.ascii_uppercase),
    tuple(string.digits),
)


def attributes(prompt: Prompt) -> tuple[Any, ...]:
    """What a prompt asks for, clause by clause: colour, shape, count and relation; of a sign, its characters."""
    if prompt.columns["tag"] == TEXT_TASK:
        return tuple(prompt.columns["text"])
    return tuple(
        value
        for clause in prompt.columns["include"]
        for value in (clause.get("color"), clause["class"], clause["count"], *clause.get("position", ())[:1])
    )


def imperfect_caption(
    prompt: Prompt, rng: np.random.Generator, *, wrong: float, refused: Container[str] = ()
) -> str:
    """A caption for the picture of ``prompt`` in which attributes are wrong now and then.

    Args:
        prompt: what the picture shows.
        rng: the source of chance.
        wrong: probability with which each attribute is replaced by another one of its kind; what would not be a
            prompt of the split ``pretraining`` is drawn again.
        refused: captions that are drawn again too.

    Raises:
        ValueError: if ``wrong`` is not in [0, 1).
    """
    if not 0 <= wrong < 1:
        raise ValueError(f"Expected a share of wrong attributes in [0, 1), got {wrong}.")
    while True:
        said = tuple(_another(v, rng) if rng.random() < wrong else v for v in attributes(prompt))
        text = _spoken(prompt.columns["tag"], said)
        if text is not None and text not in refused:
            return text


def _spoken(task: str, said: tuple[Any, ...]) -> str | None:
    """The prompt of ``task`` that asks for this, if there is one."""
    return sign("".join(said)).text if task == TEXT_TASK else _sayable(task).get(said)


@cache
def _sayable(task: str) -> dict[tuple[Any, ...], str]:
    return {attributes(prompt): prompt.text for prompt in prompts("pretraining", (task,))}


def _another(value: Any, rng: np.random.Generator) -> Any:
    """Another value of the same kind; what has no other, such as a count of one, stays."""
    others = next(([v for v in kind if v != value] for kind in _KINDS if value in kind), [value])
    return others[rng.integers(len(others))]
