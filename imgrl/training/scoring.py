"""Scores of a round's images: of all of them once the last is made, or of each part while the next one is sampled."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from imgrl.types import Prompt, Scores

__all__ = ["Judge"]

Part = tuple[Tensor, Sequence[Prompt], Tensor]
"""Images, their prompts and their groups."""


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
        self._coming: list[Future[Scores]] = []
        self._asked: queue.SimpleQueue[tuple[Part, Future[Scores]] | None] | None = None
        if beside:
            self._asked = queue.SimpleQueue()
            device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
            # Not an executor, for whose threads Python waits at its exit: a reward may hang.
            threading.Thread(target=self._work, args=(self._asked, device), daemon=True).start()

    def __enter__(self) -> Judge:
        """The judge itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ask about no further part; one that is being scored is left behind."""
        for coming in self._coming:
            coming.cancel()
        if self._asked is not None:
            self._asked.put(None)

    def take(self, images: Tensor, prompts: Sequence[Prompt], group: Tensor) -> None:
        """Show a part of the images [n, 3, H, W], a prompt and a group number each, as soon as it is made."""
        if self._asked is not None:
            self._coming.append(Future())
            self._asked.put(((images, prompts, group), self._coming[-1]))

    def scores(self, images: Tensor, prompts: Sequence[Prompt], group: Tensor) -> Scores:
        """Scores of all images, which are the parts shown, one after another.

        Raises:
            RewardError: whatever scoring raised, for the first part that did.
        """
        if self._asked is not None:
            return _joined([coming.result() for coming in self._coming])
        return self._score(images, prompts, group)

    def _work(self, asked: queue.SimpleQueue[tuple[Part, Future[Scores]] | None], device: int | None) -> None:
        """Score what is asked for until nothing more is, in a thread, which does not inherit the GPU."""
        if device is not None:
            torch.cuda.set_device(device)
        while (job := asked.get()) is not None:
            part, coming = job
            if not coming.set_running_or_notify_cancel():
                continue
            try:
                coming.set_result(self._score(*part))
            except BaseException as error:  # a thread cannot raise into its caller
                coming.set_exception(error)


def _joined(parts: Sequence[Scores]) -> Scores:
    names = parts[0].values
    return Scores(
        values={name: torch.cat([part.values[name] for part in parts]) for name in names},
        total=torch.cat([part.total for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
        failures={name: sum(part.failures[name] for part in parts) for name in parts[0].failures},
    )
