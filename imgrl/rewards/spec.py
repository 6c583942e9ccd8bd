"""A reward as a recipe writes it. Light: needs no torch, so that recipes are read quickly."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from imgrl.errors import RewardError

__all__ = ["RewardSpec", "read_spec"]


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """One reward as a recipe writes it."""

    use: str | Callable[..., Any]
    """A callable, a built-in name, ``package.module:attribute`` or ``folder/file.py:attribute``."""
    weight: float = 1.0
    """Factor in the combined reward; 0 only records it."""
    heldout_only: bool = False
    """Score held-out images alone, so that a slow judge costs training nothing; needs weight 0."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """A class is constructed with them, a function bound with them."""
    batch: int | None = None
    """Images in one call, None for all; a failing call masks only its own. Groupwise rewards ignore it."""
    timeout: float | None = 600.0
    """Seconds a call may take; None waits for ever."""
    retries: int = 2
    """Further attempts after a call that raised or timed out."""
    backoff: float = 1.0
    """Seconds before the first further attempt; doubles each time."""

    def __post_init__(self) -> None:
        """Refuse a weight or batch that cannot be meant."""
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be finite, got {self.weight}.")
        if self.heldout_only and self.weight:
            raise ValueError(f"heldout_only needs weight 0, got {self.weight}.")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1 or None, got {self.batch}.")


def read_spec(name: str, given: Any) -> RewardSpec:
    """Turn what a recipe or a caller writes for reward ``name`` into its description.

    Args:
        name: of the reward; also what it uses where ``given`` does not say.
        given: a weight, a callable, a text, a mapping of settings, or a RewardSpec.

    Raises:
        RewardError: for anything else and for unknown settings, with the nearest known one.
    """
    if isinstance(given, RewardSpec):
        return given
    if isinstance(given, bool) or given is None:
        raise RewardError(
            f"Reward {name!r} must be a weight, a callable, a text or a table of settings, got {given!r}."
        )
    if isinstance(given, int | float):
        return RewardSpec(use=name, weight=float(given))
    if isinstance(given, Mapping):
        known = [entry.name for entry in fields(RewardSpec)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise RewardError(f"Reward {name!r} has no setting {key!r}{hint}; it has {', '.join(known)}.")
        try:
            return RewardSpec(**{"use": name, **given})
        except (TypeError, ValueError) as error:
            raise RewardError(f"Reward {name!r}: {error}") from error
    return RewardSpec(use=given)
