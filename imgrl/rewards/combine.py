"""Several weighted rewards together: raw values kept, failures masked and counted, never made zeros."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgrl.errors import BudgetError, RewardError
from imgrl.rewards.base import Reward, column_names
from imgrl.rewards.cache import Cache, eight_bits, score_keys
from imgrl.rewards.calling import Failure, Patience
from imgrl.rewards.identity import identity_of
from imgrl.rewards.learning import Learners
from imgrl.rewards.resolve import make
from imgrl.rewards.spec import RewardSpec, read_spec
from imgrl.types import Prompt, Scores

__all__ = ["RewardSet"]


class RewardSet:
    """Named rewards with weights, called together.

    Args:
        specs: each reward's name and description.
        failure_budget: share of the images of one ``score`` that may fail before the run stops.
        cache: file that keeps the scores of rewards that have an identity; None keeps none.
    """

    def __init__(
        self,
        specs: Mapping[str, RewardSpec],
        *,
        failure_budget: float = 0.25,
        cache: str | Path | None = None,
    ) -> None:
        if not specs:
            raise RewardError("At least one reward is needed, got none.")
        if all(spec.weight == 0 for spec in specs.values()):
            raise RewardError("Every reward has weight 0, so nothing trains; give one a weight.")
        if not 0 <= failure_budget <= 1:
            raise ValueError(f"failure_budget is a share between 0 and 1, got {failure_budget}.")
        self.specs = dict(specs)
        self.failure_budget = failure_budget
        self.cache = None if cache is None else Cache(cache)
        self.rewards = {name: _build(name, spec) for name, spec in specs.items()}
        self.learners = Learners(self.rewards)
        self._identities: dict[str, str | None] = {}
        self.last_failure: dict[str, Failure] = {}
        self._columns: frozenset[str] = frozenset()

    @classmethod
    def from_specs(
        cls,
        specs: Mapping[str, Any],
        *,
        failure_budget: float = 0.25,
        cache: str | Path | None = None,
    ) -> RewardSet:
        """Build from what a recipe or a caller writes: name to weight, callable, text or settings.

        Example:
            ``RewardSet.from_specs({"ocr": 1.0, "bright": {"use": "my.py:brightness", "weight": 0.2}})``
        """
        read = {name: read_spec(name, given) for name, given in specs.items()}
        return cls(read, failure_budget=failure_budget, cache=cache)

    def check(
        self,
        prompts: Sequence[Prompt],
        *,
        height: int = 64,
        width: int = 64,
        training: bool = False,
        cached: bool = False,
    ) -> tuple[float, float]:
        """Call every reward on two flat images and real prompts, before anything expensive starts.

        A reward that does not apply to the first prompt is tried on up to 15 others. One with a method
        ``check_prompts(prompts)`` is asked about all of them.

        Args:
            prompts: the data set; fixes which columns rewards are given.
            height: of the images to come, pixels.
            width: of the images to come, pixels.
            training: these prompts are trained on. Then rewards that learn must be able to learn from all of them, and
                a reward with a weight must apply to one of them, as far as 16 tell. Held-out prompts need neither.
            cached: a reward whose answer the cache has is not called, since that may cost money.

        Returns:
            How low and how high the weighted sum can come with the values seen.

        Raises:
            RewardError: if a reward misses a column, raises, or breaks its contract.
        """
        self._columns = column_names(prompts)
        self.learners.probe(height=height, width=width)
        texts = [prompt.text for prompt in prompts]
        if training:
            self.learners.check(texts)
        images = torch.stack([torch.full((3, height, width), level) for level in (0.25, 0.75)])
        low = high = 0.0
        for name, reward in self.rewards.items():
            reward.check_prompts(texts)
            weight = self.specs[name].weight
            keeps = cached and self.cache is not None and self.identity(name) is not None
            weighted = weight * self._probe(name, images, prompts, training and weight != 0, keeps)
            if len(weighted):
                low, high = low + float(weighted.min()), high + float(weighted.max())
        return low, high

    def _probe(
        self, name: str, images: Tensor, prompts: Sequence[Prompt], must_apply: bool, keeps: bool
    ) -> Tensor:
        """A reward's scores of the images for the first prompt, of up to 16, that it applies to; none if to none."""
        reward = self.rewards[name]
        passed = reward.passed_columns(self._columns)
        probes = _probes(prompts, reward.required)
        for prompt in probes:
            same = [prompt] * len(images)
            scores = self._ask_kept(name, images, same) if keeps else reward(images, same, passed)
            if isinstance(scores, Failure):
                raise RewardError(
                    f"Reward {name!r} failed on a probe of two flat images ({scores})."
                ) from scores
            if len(found := scores[~scores.isnan()]):  # it has done its work once
                return found
        if must_apply and len(probes) == len(prompts):
            raise RewardError(
                f"Reward {name!r} returned None for each of the {len(prompts)} prompts, so it would train nothing; "
                "give prompts that it applies to, or have it return a low score, not None, where an image lacks "
                "what it looks for."
            )
        return torch.empty(0)

    def _ask_kept(self, name: str, images: Tensor, prompts: Sequence[Prompt]) -> Tensor | Failure:
        scores, missed = self.ask(name, images, prompts, columns=self._columns)
        return self.last_failure[name] if missed.any() else scores

    def score(
        self,
        images: Tensor,
        prompts: Sequence[Prompt],
        *,
        group: Tensor | None = None,
        group_size: int | None = None,
        share: bool = False,
        training: bool = False,
    ) -> Scores:
        """Score n images by every reward.

        Args:
            images: float [n, 3, H, W] in [0, 1].
            prompts: one an image.
            group: int [n], which images belong together; groupwise rewards need it.
            group_size: size of a whole group, to refuse part of one handed to a groupwise reward.
            share: these are one process's share of the images. Whether too many failed, or none can be scored,
                is then for the caller to judge over all shares; see :meth:`check_failures`.
            training: leave out the rewards that only judge held-out images.

        Returns:
            The raw values, their weighted sum over the rewards that apply, and the mask of usable images: no
            reward with a weight failed on them, and at least one applies.

        Raises:
            RewardError: for a broken contract, failures beyond the budget, or if no reward applies to any
            image.
        """
        _check_images(images, prompts)
        columns = self._columns | column_names(prompts)
        count = len(prompts)
        total, applies = torch.zeros(count), torch.zeros(count, dtype=torch.bool)
        failed = torch.zeros(count, dtype=torch.bool)
        values: dict[str, Tensor] = {}
        failures: dict[str, int] = {}
        for name in self.rewards:
            if training and self.specs[name].heldout_only:
                continue
            values[name], missed = self.ask(
                name, images, prompts, columns=columns, group=group, group_size=group_size
            )
            failures[name] = int(missed.sum())
            if not share:
                self.check_failures({name: failures[name]}, count)
            if weight := self.specs[name].weight:
                here = ~values[name].isnan()
                total += weight * values[name].nan_to_num(0.0)
                applies |= here
                failed |= missed
        if not training:
            self.learners.forget()
        mask = applies & ~failed
        if not share and not mask.any() and not failed.any():
            raise RewardError(
                f"No reward with a weight applies to any of the {count} images; check the prompts."
            )
        return Scores(values=values, total=total.masked_fill(~mask, math.nan), mask=mask, failures=failures)

    def ask(
        self,
        name: str,
        images: Tensor,
        prompts: Sequence[Prompt],
        *,
        columns: Iterable[str],
        group: Tensor | None = None,
        group_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return one reward's values float32 [n], NaN where there is none, and on which images it failed."""
        reward, count = self.rewards[name], len(prompts)
        passed = reward.passed_columns(columns)
        values, missed = torch.full((count,), math.nan), torch.zeros(count, dtype=torch.bool)
        rows, keys, identity = torch.arange(count), [], self.identity(name) if self.cache else None
        if self.cache and identity:
            images = eight_bits(images)
            keys = score_keys(identity, images, prompts, passed, name=name)
            known = self.cache.get(keys)
            values = torch.tensor([math.nan if (v := known.get(key)) is None else v for key in keys])
            rows = torch.tensor([row for row in range(count) if keys[row] not in known], dtype=torch.int64)
        for part in _calls(reward, self.specs[name].batch, rows, group, group_size):
            scores = reward(images[part], [prompts[int(i)] for i in part], passed)
            if isinstance(scores, Failure):
                missed[part], self.last_failure[name] = True, scores
                continue
            values[part] = scores
            if self.cache and keys:
                self.cache.put([keys[int(i)] for i in part], scores)
        return values, missed

    def identity(self, name: str) -> str | None:
        """What tells a reward's scores from others' (:mod:`imgrl.rewards.identity`); may read all its weights once."""
        if name not in self._identities:
            self._identities[name] = identity_of(self.rewards[name], self.specs[name])
        return self._identities[name]

    def check_failures(self, failures: Mapping[str, int], count: int) -> None:
        """Raise BudgetError if a reward failed on more than the allowed share of ``count`` images."""
        for name, missed in failures.items():
            if missed > self.failure_budget * count:
                last = self.last_failure.get(name)
                story = "it was in another process" if last is None else f"the last failure was {last}"
                raise BudgetError(
                    f"Reward {name!r} failed on {missed} of {count} images, more than the budget of "
                    f"{self.failure_budget:.0%}; {story}."
                ) from last


def _build(name: str, spec: RewardSpec) -> Reward:
    try:
        patience = Patience(timeout=spec.timeout, retries=spec.retries, backoff=spec.backoff)
    except ValueError as error:
        raise RewardError(f"Reward {name!r}: {error}") from error
    return Reward(name, make(spec.use, spec.args, name=name), patience=patience)


def _probes(prompts: Sequence[Prompt], wanted: Iterable[str]) -> Sequence[Prompt]:
    """Up to 16 prompts from all over the data set, those with the wanted columns if any have them."""
    if not prompts:
        raise RewardError("Rewards cannot be checked without a prompt.")
    wanted = set(wanted)
    best = [prompt for prompt in prompts if wanted <= prompt.columns.keys()] or list(prompts)
    return best[:: -(-len(best) // 16)]


def _check_images(images: Tensor, prompts: Sequence[Prompt]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or not len(images):
        raise RewardError(f"Images must be float [n, 3, H, W], got {images.dtype} {tuple(images.shape)}.")
    if len(images) != len(prompts):
        raise RewardError(
            f"Each image needs its prompt, got {len(images)} images and {len(prompts)} prompts."
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise RewardError(f"Images must lie in [0, 1] and be finite, got values from {low:g} to {high:g}.")


def _calls(
    reward: Reward, batch: int | None, rows: Tensor, group: Tensor | None, group_size: int | None
) -> Iterable[Tensor]:
    """Row numbers of each call: whole groups for a groupwise reward, else slices of ``batch``."""
    count = len(rows)
    if not reward.groupwise:
        return rows.split(batch or count) if count else ()
    if group is None or group.shape != (count,):
        raise RewardError(
            f"Reward {reward.name!r} is groupwise and needs the group number of each of {count} images."
        )
    groups = [torch.nonzero(group == number).flatten() for number in group.unique()]
    for members in groups:
        if group_size is not None and len(members) != group_size:
            raise RewardError(
                f"Reward {reward.name!r} is groupwise, but only {len(members)} of a group's {group_size} "
                "images are here; choose a batch geometry that keeps groups whole."
            )
    return groups
