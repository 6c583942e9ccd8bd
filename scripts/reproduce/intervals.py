"""The interval of every reproduction: Student's t, 95 %, over seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

__all__ = ["half_width"]


def half_width(values: ArrayLike) -> Any:
    """Of the interval of a mean over the first axis."""
    rows = np.asarray(values)
    return stats.t.ppf(0.975, len(rows) - 1) * rows.std(0, ddof=1) / len(rows) ** 0.5
