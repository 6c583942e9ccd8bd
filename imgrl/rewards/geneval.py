"""GenEval's rules on what a detector of yours finds: counts, colours and relations of objects (Ghosh et al., 2023).

No detector comes along: the benchmark's own (Mask2Former on COCO, and CLIP for colours) needs weights that no package
ships. Scores depend on the detector, so only with the benchmark's own one are they GenEval's. For the embedded shape
world, whose detector needs no weights, there is the reward ``shapes``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.evaluation.geneval.judge import Box, Rules, judge
from imgrl.rewards.identity import source_digest
from imgrl.rewards.pixels import to_uint8
from imgrl.rewards.resolve import locate

__all__ = ["GenEval"]

Kind = Literal["score", "strict", "correct"]


class GenEval:
    """Agreement of the detected objects with the prompt's GenEval metadata; None for rows without ``include``.

    Args:
        detector: called with pictures uint8 [n, H, W, 3]; returns for each a mapping of class name to boxes
            ``(x1, y1, x2, y2, confidence)`` in pixels, unfiltered. A callable, or where it is:
            ``package.module:attribute`` or ``folder/file.py:attribute``; a class is constructed without arguments.
        colors: called with one picture uint8 [H, W, 3], a class name and some of its boxes, where a clause asks for a
            colour; names the colour of each box. Given like ``detector``.
        reward: ``score`` gives partial credit, ``strict`` wants every count exact, ``correct`` is the official
            verdict, which forgives extra objects.
        rules: fields of :class:`imgrl.evaluation.geneval.judge.Rules`; the benchmark's thresholds by default, but
            ``clip`` is on, so that a surplus of objects cannot lead below 0.

    Raises:
        RewardError: if no detector is given or it cannot be found.
    """

    def __init__(
        self,
        *,
        detector: str | Callable[..., Any] | None = None,
        colors: str | Callable[..., Any] | None = None,
        reward: Kind = "score",
        rules: Mapping[str, Any] | None = None,
    ) -> None:
        if detector is None:
            raise RewardError(
                "Reward 'geneval' needs an object detector, and none comes with imgrl: give args.detector, a callable "
                "or 'folder/file.py:attribute', which takes pictures uint8 [n, H, W, 3] and returns for each a mapping "
                "of class name to boxes (x1, y1, x2, y2, confidence)."
            )
        if reward not in get_args(Kind):
            raise ValueError(f"reward must be one of {', '.join(get_args(Kind))}, got {reward!r}.")
        self.kind = reward
        self.rules = Rules(**{"clip": True, **(rules or {})})
        self.detector = _found(detector)
        self.colors = None if colors is None else _found(colors)
        named = [given if isinstance(given, str) else None for given in (detector, colors)]
        stated = [getattr(found, "identity", None) for found in (self.detector, self.colors)]
        self.identity = repr([*map(source_digest, named), *stated])
        """Changes with the files that define the two callables, and with what they state as theirs."""

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        *,
        tag: Sequence[str | None],
        include: Sequence[Any],
        exclude: Sequence[Any] | None = None,
    ) -> list[float | None]:
        """Score images [n, 3, H, W] in [0, 1]; the detector sees those that have metadata, all at once."""
        del prompts
        rows = [row for row, clauses in enumerate(include) if clauses]
        scores: list[float | None] = [None] * len(include)
        if not rows:
            return scores
        pictures = to_uint8(images[rows])
        for row, picture, boxes in zip(rows, pictures, self._detect(pictures), strict=True):
            metadata = {"tag": tag[row], "include": include[row]}
            if exclude is not None and exclude[row]:
                metadata["exclude"] = exclude[row]
            verdict = judge(metadata, boxes, self._lookup(picture), rules=self.rules)
            scores[row] = float(getattr(verdict, self.kind))
        return scores

    def _detect(self, pictures: np.ndarray) -> list[dict[str, list[Box]]]:
        """The detector's answer, checked."""
        found = list(self.detector(pictures))
        if len(found) != len(pictures) or not all(isinstance(boxes, Mapping) for boxes in found):
            kinds = ", ".join(sorted({type(boxes).__name__ for boxes in found}))
            raise RewardError(
                f"The detector of reward 'geneval' must return one mapping of class name to boxes for each of "
                f"{len(pictures)} pictures, got {len(found)} of {kinds or 'nothing'}."
            )
        return [{name: [_box(box) for box in boxes] for name, boxes in one.items()} for one in found]

    def _lookup(self, picture: np.ndarray) -> Callable[[str, Sequence[Box]], Sequence[str]]:
        """What names colours in one picture."""

        def lookup(name: str, boxes: Sequence[Box]) -> Sequence[str]:
            if self.colors is None:
                raise RewardError(
                    f"A prompt asks for the colour of {name!r}, which reward 'geneval' cannot tell: give args.colors, "
                    "a callable that names the colours of boxes, or leave such prompts out."
                )
            named = list(self.colors(picture, name, boxes))
            if len(named) != len(boxes):
                raise RewardError(
                    f"args.colors of reward 'geneval' must name one colour a box, got {len(named)} for {len(boxes)}."
                )
            return named

        return lookup


def _box(given: Any) -> Box:
    numbers = [float(number) for number in given]
    if len(numbers) not in (4, 5):
        raise RewardError(
            f"A box of reward 'geneval' is (x1, y1, x2, y2, confidence), got {len(numbers)} numbers."
        )
    return Box(*numbers)


def _found(given: Any) -> Any:
    """The callable that is given or named."""
    found = locate(given, name="geneval") if isinstance(given, str) else given
    return found() if inspect.isclass(found) else found
