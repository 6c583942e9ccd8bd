"""Numbers that change with the optimiser step: decays of lagging copies and weights.

Schedules count optimiser steps, never rounds, so that more updates per round do not stretch them.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["PRESETS", "Constant", "Linear", "Piecewise", "Ramp", "Schedule", "adaptive_weight"]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same number at every step."""

    value: float = 0.0

    def __call__(self, step: int) -> float:
        """Value at an optimiser step."""
        del step
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear:
    """From ``first`` at step 0 to ``last`` at step ``steps``, then constant."""

    first: float = 0.0
    last: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        """Refuse a line of no length."""
        if self.steps < 1:
            raise ValueError(f"Expected Linear(steps >= 1), got {self.steps}; use Constant for no change.")

    def __call__(self, step: int) -> float:
        """Value at an optimiser step."""
        return self.first + (self.last - self.first) * min(max(step, 0) / self.steps, 1.0)


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """``value`` before step ``start``, then ``min(value + (step - start) slope, end)``."""

    start: int = 0
    value: float = 0.0
    slope: float = 0.0
    end: float = 1.0

    def __call__(self, step: int) -> float:
        """Value at an optimiser step."""
        if step < self.start:
            return self.value
        return min(self.value + (step - self.start) * self.slope, self.end)

    @classmethod
    def parse(cls, text: str) -> Ramp:
        """Read ``"start-value-slope-end"``, the notation of CRD's recipes."""
        parts = text.split("-")
        try:
            start, (value, slope, end) = int(parts[0]), map(float, parts[1:])
        except ValueError:
            raise ValueError(
                f"Expected 'start-value-slope-end' such as '75-0.0-0.0075-0.999', got {text!r}."
            ) from None
        return cls(start=start, value=value, slope=slope, end=end)


@dataclass(frozen=True, kw_only=True)
class Piecewise:
    """Constant between the listed steps."""

    points: tuple[tuple[int, float], ...] = ((0, 0.0),)
    """``(step, value)`` pairs with rising steps, the first at step 0; each value holds from its step on."""

    def __post_init__(self) -> None:
        """Refuse gaps and disorder."""
        steps = [step for step, _ in self.points]
        if not steps or steps[0] != 0 or any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
            raise ValueError(f"Expected Piecewise points at rising steps that begin at 0, got steps {steps}.")

    def __call__(self, step: int) -> float:
        """Value at an optimiser step."""
        return [value for at, value in self.points if at <= max(step, 0)][-1]


Schedule = Constant | Linear | Ramp | Piecewise

#: Decays of lagging copies by name, in the order of Flow-Factory's numbered presets (0 to 6).
PRESETS: dict[str, Ramp] = {
    "none": Ramp(end=0.0),
    "slow": Ramp(slope=0.001, end=0.5),
    "medium": Ramp(start=75, slope=0.0075, end=0.999),
    "offline": Ramp(value=1.0),
    "fast": Ramp(slope=0.02, end=0.99),
    "moderate": Ramp(slope=0.01, end=0.5),
    "steep": Ramp(slope=0.0075, end=0.999),
}
OCR_OLD = Ramp(value=0.25, slope=0.005, end=0.999)
OCR_SAMPLING = PRESETS["medium"]
GENEVAL_OLD = Ramp(value=0.25, slope=0.001, end=0.5)
GENEVAL_SAMPLING = PRESETS["slow"]


def adaptive_weight(rho: Float[Tensor, " n"], *, value: float, floor: float = 1e-4) -> Float[Tensor, " n"]:
    """Strength that rises with ``rho`` in [0, 1]: ``floor + rho (value - floor)``.

    CRD's reward-adaptive KL (arXiv 2603.14128), as its first author's code has it.

    Raises ValueError if ``value < floor``: the strength would then fall as the reward rises.
    """
    if value < floor:
        raise ValueError(
            f"Expected an adaptive weight of at least its floor {floor}, got {value}; "
            "raise it, lower the floor, or use adaptive='none'."
        )
    return floor + rho * (value - floor)
