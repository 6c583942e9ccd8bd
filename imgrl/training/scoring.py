"""Scores of a round's images: of all of them once the last is made, or of each part while the next one is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from imgrl.types import Prompt, Scores

__all__ = ["Judge"]


class Judge:
    """Takes the images of a round in parts and gives the scores of all.

    Args:
        score: images [n, 3, H, W], their prompts and group numbers [n] to scores.
        beside: score each part in a thread of its own while more are sampled. Pays where the sampling device idles
            during scoring, as with rewards over a network; parts are scored in order, one at a time.
    """

    def __init__(
        self, score: Callable[[Tensor, Sequence[Prompt], Tensor], Scores], *, beside: bool = False
    ) -> None:
        self._score = score
        self._parts: list[tuple[Tensor, Sequence[Prompt], Tensor]] = []
        self._coming: list[Future[Scores]] = []
        self._worker = ThreadPoolExecutor(1, "imgrl-judge", initializer=_same_device()) if beside else None

    def __enter__(self) -> Judge:
        """The judge itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ask about no further part; one that is being scored is left behind."""
        if self._worker is not None:
            self._worker.shutdown(wait=False, cancel_futures=True)

    def take(self, images: Tensor, prompts: Sequence[Prompt], group: Tensor) -> None:
        """Hand over images [n, 3, H, W], a prompt and a group number each."""
        if self._worker is None:
            self._parts.append((images, prompts, group))
        else:
            self._coming.append(self._worker.submit(self._score, images, prompts, group))

    def scores(self) -> Scores:
        """Scores of all images, in the order in which they were handed over.

        Raises:
            RewardError: whatever scoring raised, for the first part that did.
        """
        if self._worker is not None:
            return _joined([coming.result() for coming in self._coming])
        images, prompts, group = zip(*self._parts, strict=True)
        return self._score(torch.cat(images), [p for part in prompts for p in part], torch.cat(group))


def _joined(parts: Sequence[Scores]) -> Scores:
    names = parts[0].values
    return Scores(
        values={name: torch.cat([part.values[name] for part in parts]) for name in names},
        total=torch.cat([part.total for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
        failures={name: sum(part.failures[name] for part in parts) for name in parts[0].failures},
    )


def _same_device() -> Callable[[], None]:
    """Lets a thread begin with the GPU of the one that starts it; threads do not inherit it."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    return lambda: None if device is None else torch.cuda.set_device(device)
