"""Prompt grammar of the embedded world, in GenEval's metadata format, and its held-out split.

A prompt is held out if it contains a held-out combination: a (colour, shape) pair, an ordered pair of shapes,
a (shape, count) pair, a bare shape name, or a sign word. Training prompts contain none of them.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import permutations, product
from typing import Any, Literal, get_args

import numpy as np

from imgrl.types import Prompt
from imgrl.world.vocabulary import (
    COLORS,
    COUNT_WORDS,
    RELATIONS,
    SHAPES,
    TASKS,
    TEXT_TASK,
    WORDS,
    plural,
    with_article,
)

__all__ = [
    "ALL_TASKS",
    "HELD_OUT_SHARE",
    "Split",
    "all_prompts",
    "held_out_combinations",
    "is_held_out",
    "prompts",
    "random_signs",
    "random_word",
    "sign",
]

Split = Literal["train", "heldout"]
ALL_TASKS = (*TASKS, TEXT_TASK)
HELD_OUT_SHARE = 0.2
_SPLIT_SEED = 2024  # part of the world's definition: changing it changes what "held out" means
_RANDOM_WORDS, _RANDOM_HELD_OUT = 500, 48


@cache
def held_out_combinations() -> dict[str, frozenset[Any]]:
    """The combinations that no training prompt contains, by kind."""
    rng = np.random.default_rng(_SPLIT_SEED)

    def choose(items: Sequence[Any], count: int | None = None) -> frozenset[Any]:
        count = round(HELD_OUT_SHARE * len(items)) if count is None else count
        return frozenset(items[i] for i in rng.permutation(len(items))[:count])

    return {
        "color_shape": _balanced_color_shape(rng),
        "shape_pair": choose(list(permutations(SHAPES, 2))),
        "shape_count": choose(list(product(SHAPES, COUNT_WORDS))),
        "shape": choose(list(SHAPES), 2),
        "word": choose(list(WORDS)),
    }


def _balanced_color_shape(rng: np.random.Generator) -> frozenset[tuple[str, str]]:
    """About 20 % of the 48 pairs, at most two a shape and two a colour: every name is still learned."""
    pairs = list(product(COLORS, SHAPES))
    chosen: list[tuple[str, str]] = []
    for i in rng.permutation(len(pairs)):
        color, shape = pairs[i]
        crowded = sum(c == color for c, _ in chosen) >= 2 or sum(s == shape for _, s in chosen) >= 2
        if not crowded and len(chosen) < round(HELD_OUT_SHARE * len(pairs)):
            chosen.append(pairs[i])
    return frozenset(chosen)


def is_held_out(metadata: dict[str, Any]) -> bool:
    """Whether the prompt behind ``metadata`` contains a held-out combination."""
    held = held_out_combinations()
    if metadata["tag"] == TEXT_TASK:
        return metadata["text"] in held["word"]
    clauses = metadata["include"]
    if any((clause.get("color"), clause["class"]) in held["color_shape"] for clause in clauses):
        return True
    if metadata["tag"] == "single_object":
        return clauses[0]["class"] in held["shape"]
    if metadata["tag"] == "counting":
        return (clauses[0]["class"], clauses[0]["count"]) in held["shape_count"]
    return len(clauses) == 2 and _named_order(metadata) in held["shape_pair"]


def _named_order(metadata: dict[str, Any]) -> tuple[str, str]:
    """The two shapes as the prompt orders them (metadata puts a relation's target first)."""
    first, second = (clause["class"] for clause in metadata["include"])
    return (second, first) if metadata["tag"] == "position" else (first, second)


Entry = tuple[str, dict[str, Any]]
"""A prompt and its metadata."""


def _is_in(split: Split | Literal["pretraining"], metadata: dict[str, Any]) -> bool:
    if split == "pretraining" and metadata["tag"] in ("single_object", "counting"):
        return True
    return is_held_out(metadata) == (split == "heldout")


def all_prompts(task: str) -> Iterator[Entry]:
    """Every (prompt, metadata) of one task in a fixed order; 1902 over the six tasks; one sign a word."""
    if task not in _GRAMMAR:
        raise ValueError(f"Expected a task among {', '.join(ALL_TASKS)}, got {task!r}.")
    return _GRAMMAR[task]()


def _single_object() -> Iterator[Entry]:
    for shape in SHAPES:
        yield _entry("single_object", with_article(shape), [_clause(shape)])


def _two_object() -> Iterator[Entry]:
    for a, b in permutations(SHAPES, 2):
        yield _entry("two_object", f"{with_article(a)} and {with_article(b)}", [_clause(a), _clause(b)])


def _counting() -> Iterator[Entry]:
    for shape, (count, word) in product(SHAPES, COUNT_WORDS.items()):
        exclude = [{"class": shape, "count": count + 1}]
        yield _entry("counting", f"{word} {plural(shape)}", [_clause(shape, count)], exclude)


def _colors() -> Iterator[Entry]:
    for color, shape in product(COLORS, SHAPES):
        yield _entry("colors", with_article(f"{color} {shape}"), [_clause(shape, color=color)])


def _position() -> Iterator[Entry]:
    for (a, b), relation in product(permutations(SHAPES, 2), RELATIONS):
        moved = {**_clause(a), "position": [relation, 0]}
        yield _entry("position", f"{with_article(a)} {relation} {with_article(b)}", [_clause(b), moved])


def _color_attr() -> Iterator[Entry]:
    for (a, b), (ca, cb) in product(permutations(SHAPES, 2), permutations(COLORS, 2)):
        text = f"{with_article(f'{ca} {a}')} and {with_article(f'{cb} {b}')}"
        yield _entry("color_attr", text, [_clause(a, color=ca), _clause(b, color=cb)])


def _signs(words: Iterable[str] = WORDS) -> Iterator[Entry]:
    for word in words:
        text = f'a sign that says "{word}"'
        yield text, {"tag": TEXT_TASK, "include": [], "text": word, "prompt": text}


def random_word(rng: np.random.Generator) -> str:
    """Three to five random capitals, or one time in eight digits; none of them a word of the grammar.

    Not mixed: O and 0, I and 1 look alike.
    """
    letters = list(string.digits if rng.random() < 1 / 8 else string.ascii_uppercase)
    while (word := "".join(rng.choice(letters, size=rng.integers(3, 6)))) in WORDS:
        pass
    return word


@cache
def _random_words() -> tuple[str, ...]:
    rng, found = np.random.default_rng(_SPLIT_SEED), dict[str, None]()
    while len(found) < _RANDOM_WORDS:
        found[random_word(rng)] = None
    return tuple(found)


def random_signs(split: Split) -> list[Prompt]:
    """Signs of random letters that no pretraining picture shows, to train on and to be judged by.

    Four in five of the grammar's words are in pretraining pictures, and a model may know those by heart.
    """
    words = _random_words()
    return _numbered(_signs(words[_RANDOM_HELD_OUT:] if split == "train" else words[:_RANDOM_HELD_OUT]))


def sign(word: str) -> Prompt:
    """The prompt of one sign."""
    return _numbered(_signs([word]))[0]


_GRAMMAR = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
    TEXT_TASK: _signs,
}


def _clause(shape: str, count: int = 1, *, color: str | None = None) -> dict[str, Any]:
    return {"class": shape, "count": count} | ({"color": color} if color else {})


def _entry(task: str, phrase: str, include: list[Any], exclude: list[Any] | None = None) -> Entry:
    text = f"a photo of {phrase}"
    metadata = {"tag": task, "include": include} | ({"exclude": exclude} if exclude else {})
    return text, metadata | {"prompt": text}


def prompts(
    split: Split | Literal["pretraining"],
    tasks: Sequence[str] = TASKS,
    *,
    limit_per_task: int | None = None,
    repeat_to_limit: bool = False,
    seed: int = 0,
) -> list[Prompt]:
    """The prompts of a split, task by task, each with its GenEval metadata in ``columns``.

    Args:
        split: "train" or "heldout"; or "pretraining", which is "train" with the bare names and counts of every
            shape: a base model has met each of them, but no held-out (colour, shape) pair, ordered pair or word.
        tasks: which of the seven tasks, in the order wanted.
        limit_per_task: at most this many a task, chosen with ``seed``; None takes all.
        repeat_to_limit: repeat the prompts of a task that has fewer than the limit, so that tasks weigh the
            same.
        seed: of the choice.
    """
    if split not in (*get_args(Split), "pretraining"):
        raise ValueError(f"Expected the split 'train', 'heldout' or 'pretraining', got {split!r}.")
    chosen: list[tuple[str, dict[str, Any]]] = []
    for task in tasks:
        pool = [entry for entry in all_prompts(task) if _is_in(split, entry[1])]
        if limit_per_task is not None:
            order = np.random.default_rng([seed, ALL_TASKS.index(task)]).permutation(len(pool))
            count = limit_per_task if repeat_to_limit else min(limit_per_task, len(pool))
            pool = [pool[order[i % len(pool)]] for i in range(count)]
        chosen += pool
    return _numbered(chosen)


def _numbered(entries: Iterable[Entry]) -> list[Prompt]:
    return [
        Prompt(id=i, text=text, columns={k: v for k, v in metadata.items() if k != "prompt"})
        for i, (text, metadata) in enumerate(entries)
    ]
