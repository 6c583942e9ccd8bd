"""How far the weights of a model in training have moved from where they were: a few figures for every log line."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from imgrl.analysis.adapters import added
from imgrl.analysis.figures import Settings
from imgrl.analysis.measure import measure
from imgrl.analysis.weights import Matrix, as_matrix

__all__ = ["DriftWatch"]

Update = Callable[[str], tuple[Tensor, Tensor]]


class DriftWatch:
    """Keeps the start of some matrices and measures the distance from it, as often as asked.

    The trajectory in weight space of 2511.08567; the one in output space is the KL to the base, which the trainers log.
    Costs a copy of the watched matrices on the CPU (none with a LoRA) and, each time, two decompositions of each.
    """

    def __init__(
        self,
        weights: Iterable[tuple[str, Tensor]],
        *,
        most: int = 8,
        k: int = 64,
        seed: int = 0,
        update: Update | None = None,
        now: Callable[[str], Tensor] | None = None,
    ) -> None:
        """Remember matrices.

        Args:
            weights: trained tensors by name, as ``model.named_parameters()`` yields them; with ``update`` the stored
                ones under a LoRA.
            most: so many matrices are watched, spread evenly over the model.
            k: principal directions.
            seed: of the randomised decomposition.
            update: gives the factors of what a LoRA adds to a named matrix now, [rows, r] and [r, columns].
            now: gives a named matrix as it is now, where other tensors than these may come to train in their place.
        """
        found = [(name, tensor) for name, tensor in weights if as_matrix(tensor).side > 1]
        step = max(1, -(-len(found) // most))
        watched = dict(found[::step])
        self._update, self._read = update, now or watched.__getitem__
        # What lies under a LoRA stays as it is.
        self._start = {n: t if update else t.detach().cpu().clone() for n, t in watched.items()}
        self._settings = Settings(k=(k,), control=False, seed=seed)

    def measure(self) -> dict[str, float]:
        """Means over the watched matrices: sparsity, relative update, spectral drift, largest angle in degrees.

        The last only over those of which k leaves out some directions, and not at all if there are none.
        """
        sums: dict[str, list[float]] = {}
        for name in self._start:
            before = as_matrix(self._start[name].cpu(), name)
            layer = measure(before, [self._now(name, before)], self._settings)
            change = layer.changes[0]
            turned = [angle for side in change.angles.get(self._settings.k[0], {}).values() for angle in side]
            figures = {
                "sparsity": 1 - change.changed / layer.parameters,
                "relative_update": change.relative,
                "spectral_drift": change.drift if change.changed or change.relative else 0.0,
                "largest_angle": max(turned, default=None),
            }
            for key, value in figures.items():
                if value is not None:
                    sums.setdefault(f"weights/{key}", []).append(value)
        return {key: sum(values) / len(values) for key, values in sums.items()}

    def _now(self, name: str, before: Matrix) -> Matrix:
        if self._update is None:
            return as_matrix(self._read(name).detach().cpu(), name)
        left, right = self._update(name)
        return added(before, left.detach().float().cpu(), right.detach().float().cpu())
