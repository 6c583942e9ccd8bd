"""Draws the prompts of each round: whole permutations, no prompt twice in a round, exact resumption."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["GroupSampler"]


class GroupSampler:
    """Indices of ``groups`` distinct prompts a round; every prompt once before any comes again.

    The order depends on the seed alone, never on the number of processes: each draws the whole round and
    takes its share. A round that would repeat a prompt across the border of two epochs takes the next one
    that is new; the one put off comes first thereafter, so each prompt still appears once an epoch.

    Args:
        num_prompts: size of the data set.
        groups: prompts a round.
        seed: of the sampler's own generator.
        balance: a key for each prompt (its task, say): every round, and every stretch of it, then holds the keys
            in equal numbers, up to one, taking turns. Prompts of small strata come more often.
        shares: how many prompts of a key come for each one of the others, 1 for a key that is not named.

    Raises:
        ValueError: if a round needs more distinct prompts than there are, or a share names no key.
    """

    def __init__(
        self,
        num_prompts: int,
        groups: int,
        seed: int,
        *,
        balance: Sequence[Hashable] | None = None,
        shares: Mapping[Any, int] | None = None,
    ) -> None:
        if groups < 1 or num_prompts < groups:
            raise ValueError(
                f"A round of {groups} different prompts needs at least that many, got {num_prompts}; "
                "add prompts or lower the number of groups."
            )
        if balance is not None and len(balance) != num_prompts:
            raise ValueError(f"balance needs a key for each of {num_prompts} prompts, got {len(balance)}.")
        self.num_prompts, self.groups, self.seed = num_prompts, groups, seed
        keys = list(dict.fromkeys(balance)) if balance is not None else [None]
        labels = balance if balance is not None else [None] * num_prompts
        members = {key: [i for i, label in enumerate(labels) if label == key] for key in keys}
        self._strata = [
            _Epochs(rows, torch.Generator().manual_seed(seed + number))
            for number, rows in enumerate(members.values())
        ]
        self._cycle = _cycle(keys, shares or {})
        self._turn = 0  # where in the cycle the next round begins
        self._check_strata(keys)

    def _check_strata(self, keys: Sequence[Hashable]) -> None:
        """Refuse a round that could ask a stratum for more prompts than it has, wherever in the cycle it begins."""
        counts = [Counter(self._order(turn)) for turn in range(len(self._cycle))]
        for number, stratum in enumerate(self._strata):
            most = max(count[number] for count in counts)
            if len(stratum.rows) < most:
                raise ValueError(
                    f"Balanced rounds of {self.groups} prompts need up to {most} of {keys[number]!r}, which has "
                    f"{len(stratum.rows)}; add prompts, lower the number of groups or do not balance."
                )

    def _order(self, turn: int) -> list[int]:
        """The stratum of each prompt of a round."""
        return [self._cycle[(turn + place) % len(self._cycle)] for place in range(self.groups)]

    def next_round(self) -> list[int]:
        """Return the indices of the next round's prompts, all different.

        Strata take turns, a b c a b c, so that every equal part of a round is as balanced as the whole: each
        optimiser step takes such a part. One with twice the share has two turns, far apart: a b a c.
        """
        order = self._order(self._turn)
        self._turn = (self._turn + self.groups) % len(self._cycle)
        drawn = {i: iter(self._strata[i].take(count)) for i, count in Counter(order).items()}
        return [next(drawn[i]) for i in order]

    def state_dict(self) -> dict[str, Any]:
        """Everything the coming rounds depend on; tensors and plain numbers only."""
        return {
            "num_prompts": self.num_prompts,
            "groups": self.groups,
            "turn": self._turn,
            "strata": [stratum.state_dict() for stratum in self._strata],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken.

        Raises:
            ValueError: if the state is of another data set or another number of groups.
        """
        mine = (self.num_prompts, self.groups, len(self._strata))
        theirs = (state["num_prompts"], state["groups"], len(state["strata"]))
        if mine != theirs:
            raise ValueError(
                f"The sampler's state is of (prompts, groups, strata) {theirs}, but this run has {mine}; "
                "resume with the same data and geometry."
            )
        self._turn = int(state["turn"])
        for stratum, saved in zip(self._strata, state["strata"], strict=True):
            stratum.load_state_dict(saved)


def _cycle(keys: Sequence[Hashable], shares: Mapping[Any, int]) -> list[int]:
    """The turns of the strata until they repeat, those of each spread evenly."""
    unknown = [key for key in shares if key not in keys]
    if unknown or any(share < 1 for share in shares.values()):
        raise ValueError(
            f"Expected shares of at least 1 for some of {', '.join(map(repr, keys))}, got {dict(shares)}."
        )
    turns = [shares.get(key, 1) for key in keys]
    places = [((turn + 0.5) / count, number) for number, count in enumerate(turns) for turn in range(count)]
    return [number for _, number in sorted(places)]


class _Epochs:
    """Permutations of ``rows``, one after another."""

    def __init__(self, rows: list[int], generator: torch.Generator) -> None:
        self.rows, self.generator = rows, generator
        self.pending: deque[int] = deque()

    def take(self, count: int) -> list[int]:
        """Draw ``count`` different rows, those put off before staying in front of the queue."""
        taken: list[int] = []
        put_off: list[int] = []
        while len(taken) < count:
            if not self.pending:
                order = torch.randperm(len(self.rows), generator=self.generator)
                self.pending.extend(self.rows[i] for i in order.tolist())
            row = self.pending.popleft()
            (put_off if row in taken else taken).append(row)
        self.pending.extendleft(reversed(put_off))
        return taken

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "pending": list(self.pending)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not set(state["pending"]) <= set(self.rows):
            raise ValueError("The sampler's state names prompts that this data set does not have.")
        self.generator.set_state(state["generator"])
        self.pending = deque(state["pending"])
