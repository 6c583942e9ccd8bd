"""What the training loop needs of several processes: who am I, gather rows, add up gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["World"]


class World:
    """A thin face over accelerate; with one process every method is the identity.

    Gradients are added up once per optimiser step in one flat buffer, instead of wrapping the network: switched
    adapters and forwards without gradients then need no special care, and the result is the same.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.accelerator.process_index

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    def gather(self, rows: Tensor) -> Tensor:
        """Detached rows of all processes, in rank order; counts may differ between processes."""
        rows = rows.detach()
        if self.size == 1:
            return rows
        counts = self._counts(len(rows))
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        everyone = self.accelerator.gather(padded).view(self.size, max(counts), *rows.shape[1:])
        return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])

    def _counts(self, count: int) -> list[int]:
        return self.accelerator.gather(torch.tensor([count], device=self.device)).tolist()

    def gather_objects(self, rows: Sequence[Any]) -> list[Any]:
        """Picklable rows of all processes in rank order (within this job's own processes only)."""
        if self.size == 1:
            return list(rows)
        from accelerate.utils import gather_object

        return list(gather_object(list(rows)))

    def any(self, here: bool) -> bool:
        """Whether it holds on any process; the same answer everywhere."""
        return here if self.size == 1 else bool(self.add(torch.tensor([float(here)], device=self.device)) > 0)

    def first(self, value: float) -> float:
        """The first process's number, for clocks, which must not differ between processes that act on them."""
        if self.size == 1:
            return value
        mine = torch.tensor([value if self.main else 0.0], dtype=torch.float64, device=self.device)
        return float(self.add(mine))

    def add(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        return value if self.size == 1 else self.accelerator.reduce(value, reduction="sum")

    def add_counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Sums over processes of numbers by name; the names must be the same everywhere."""
        total = self.add(torch.tensor(list(counts.values()), dtype=torch.int64, device=self.device))
        return dict(zip(counts, total.tolist(), strict=True))

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over processes; a missing one counts as zero."""
        if self.size == 1:
            return
        trained = list(parameters)
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        total = self.add(torch.cat([gradient.flatten() for gradient in gradients]))
        start = 0
        for gradient in gradients:
            gradient.copy_(total[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def share(self, rows: int) -> slice:
        """This process's part of ``rows`` consecutive rows; rows must divide evenly."""
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def wait(self) -> None:
        """Block until every process is here."""
        self.accelerator.wait_for_everyone()
