"""How far the weights of a model in training have moved from where they were: a few figures for every log line."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from imgrl.analysis.figures import Settings
from imgrl.analysis.measure import measure
from imgrl.analysis.weights import as_matrix

__all__ = ["DriftWatch"]


class DriftWatch:
    """Keeps the start of some matrices and measures the distance from it, as often as asked.

    The trajectory in weight space of 2511.08567; the one in output space is the KL to the base, which the trainers log.
    Costs a copy of the watched matrices on the CPU and, each time, two decompositions of each.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], *, most: int = 8, k: int = 64, seed: int = 0
    ) -> None:
        """Remember matrices.

        Args:
            parameters: as ``model.named_parameters()`` yields them.
            most: so many matrices are watched, spread evenly over the model.
            k: principal directions.
            seed: of the randomised decomposition.
        """
        found = [(name, p) for name, p in parameters if p.requires_grad and as_matrix(p).side > 1]
        step = max(1, -(-len(found) // most))
        self._watched: dict[str, nn.Parameter] = dict(found[::step])
        self._start: dict[str, Tensor] = {name: p.detach().cpu().clone() for name, p in self._watched.items()}
        self._settings = Settings(k=(k,), control=False, seed=seed)

    def measure(self) -> dict[str, float]:
        """Means over the watched matrices: sparsity, relative update, spectral drift, largest angle in degrees."""
        sums: dict[str, list[float]] = {}
        for name, parameter in self._watched.items():
            before, after = as_matrix(self._start[name], name), as_matrix(parameter.cpu(), name)
            layer = measure(before, [after], self._settings)
            change = layer.changes[0]
            turned = [angle for side in change.angles.get(self._settings.k[0], {}).values() for angle in side]
            figures = {
                "sparsity": 1 - change.changed / layer.parameters,
                "relative_update": change.relative,
                "spectral_drift": change.drift if change.changed or change.relative else 0.0,
                "largest_angle": max(turned, default=0.0),
            }
            for key, value in figures.items():
                if value is not None:
                    sums.setdefault(f"weights/{key}", []).append(value)
        return {key: sum(values) / len(values) for key, values in sums.items()}
