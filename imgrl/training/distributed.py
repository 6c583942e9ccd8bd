"""What the training loop needs of several processes: who am I, gather rows, add up gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["World"]

_BUCKET = 64 << 20  # bytes of gradients that are copied together: few messages, little extra memory


class World:
    """A thin face over accelerate; with one process every method is the identity.

    Gradients are added up once per optimiser step in flat buckets, instead of wrapping the network: switched
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
        return self.add_numbers([value if self.main else 0.0])[0]

    def add(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        return value if self.size == 1 else self.accelerator.reduce(value, reduction="sum")

    def add_numbers(self, values: Sequence[float]) -> list[float]:
        """Sums over processes in double precision, which one process does without its device's help.

        Apple's devices have no float64.
        """
        if self.size == 1:
            return list(values)
        return self.add(torch.tensor(list(values), dtype=torch.float64, device=self.device)).tolist()

    def add_counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Sums over processes of numbers by name; the names must be the same everywhere."""
        total = self.add(torch.tensor(list(counts.values()), dtype=torch.int64, device=self.device))
        return dict(zip(counts, total.tolist(), strict=True))

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over processes, a bucket at a time; a missing one counts as zero."""
        if self.size == 1:
            return
        trained = list(parameters)
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in trained if parameter.grad is not None]):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                torch.distributed.all_reduce(bucket[0])  # as it lies, however large it is
                continue
            total = torch.cat([gradient.flatten() for gradient in bucket])
            torch.distributed.all_reduce(total)  # in place: accelerate's reduce would make another copy
            parts = total.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def share(self, rows: int) -> slice:
        """This process's part of ``rows`` consecutive rows; rows must divide evenly."""
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def wait(self) -> None:
        """Block until every process is here."""
        self.accelerator.wait_for_everyone()


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive gradients of up to ``_BUCKET`` bytes together; a larger one stays alone."""
    bucket: list[Tensor] = []
    held = 0
    for gradient in gradients:
        if bucket and held + gradient.nbytes > _BUCKET:
            yield bucket
            bucket, held = [], 0
        bucket.append(gradient)
        held += gradient.nbytes
    if bucket:
        yield bucket
