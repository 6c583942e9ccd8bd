"""Captions that are wrong in one word: what teaches a reader to look at every word (as in FOIL, arXiv 1705.01359)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

__all__ = ["Foils"]


class Foils:
    """Exchanges a word of a caption for another one that stands between the same neighbours in other captions.

    Between the same two words stand words of one kind: colours, numbers, names of things. A word that changes nothing,
    such as a synonym, is met as often beside pictures it is true of, and comes to count for nothing.

    Args:
        captions: from which the kinds are learned.
    """

    def __init__(self, captions: Iterable[str]) -> None:
        self._between: dict[tuple[str, str], set[str]] = defaultdict(set)
        for words in {tuple(caption.split()) for caption in captions}:
            for place, word in enumerate(words):
                self._between[_neighbours(words, place)].add(word)

    def of(self, caption: str, generator: torch.Generator) -> str | None:
        """The caption with one word exchanged; None where nothing else stands in any of its places."""
        words = caption.split()
        choices = [
            (place, others)
            for place, word in enumerate(words)
            if (others := sorted(self._between.get(_neighbours(words, place), set()) - {word}))
        ]
        if not choices:
            return None
        place, others = choices[_below(len(choices), generator)]
        return " ".join([*words[:place], others[_below(len(others), generator)], *words[place + 1 :]])


def _neighbours(words: tuple[str, ...] | list[str], place: int) -> tuple[str, str]:
    """The words on both sides, empty at an end."""
    before = words[place - 1] if place else ""
    return before, words[place + 1] if place + 1 < len(words) else ""


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
