"""Judge of the embedded shape world: a rule-based detector under GenEval's rules."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from imgrl.rewards.pixels import to_uint8

__all__ = ["Shapes"]

Kind = Literal["score", "strict", "correct", "graded"]


class Shapes:
    """Agreement of the detected shapes with the prompt's metadata, 0 to 1.

    Rows without ``include`` clauses (sign prompts, foreign prompts) get None: it does not apply.

    Args:
        reward: ``score`` gives partial credit, ``strict`` wants every count exact, ``correct`` is the
            official verdict, which forgives extra objects; ``graded`` the mean of the partial credit from
            three detectors, the last of them the official one, so that a shape which is nearly clean earns
            more than a blob.
    """

    def __init__(self, *, reward: Kind = "score") -> None:
        if reward not in get_args(Kind):
            raise ValueError(f"reward must be one of {', '.join(get_args(Kind))}, got {reward!r}.")
        self.kind = reward

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        *,
        tag: Sequence[str | None],
        include: Sequence[Any],
        exclude: Sequence[Any] | None = None,
    ) -> list[float | None]:
        """Score images [n, 3, H, W] against the metadata of their prompts."""
        scores: list[float | None] = []
        for index, pixels in enumerate(to_uint8(images)):
            if not include[index]:
                scores.append(None)
                continue
            metadata = {"tag": tag[index], "include": include[index], "prompt": prompts[index]}
            if exclude is not None and exclude[index]:
                metadata["exclude"] = exclude[index]
            scores.append(self._score(pixels, metadata))
        return scores

    def _score(self, pixels: np.ndarray, metadata: dict[str, Any]) -> float:
        from imgrl.world.score import GRADES, judge_image

        if self.kind == "graded":
            return fmean(judge_image(pixels, metadata, rules=rules).score for rules in GRADES)
        return float(getattr(judge_image(pixels, metadata), self.kind))
