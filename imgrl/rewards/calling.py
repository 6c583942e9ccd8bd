"""Calls foreign code with a deadline and repeats what failed: only here is an exception swallowed."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Failure", "Patience", "call_patiently"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long to wait for a reward and how often to ask again."""

    timeout: float | None = 600.0
    """Seconds a call may take; None waits for ever."""
    retries: int = 2
    """Further attempts after a call that raised or timed out."""
    backoff: float = 1.0
    """Seconds before the first further attempt; doubles each time."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout must be positive seconds or None, got {self.timeout}.")
        if self.retries < 0 or self.backoff < 0:
            raise ValueError(
                f"retries and backoff must not be negative, got {self.retries} and {self.backoff}."
            )


class Failure(Exception):
    """Every attempt at a call failed; carries the last one's story."""


def call_patiently(call: Callable[[], Any], *, patience: Patience, name: str) -> Any:
    """Return ``call()``, awaited if it is a coroutine, after as many attempts as ``patience`` allows.

    Raises:
        Failure: if no attempt returned.
    """
    attempts = patience.retries + 1
    story, last = "", None
    for attempt in range(attempts):
        if attempt:
            time.sleep(patience.backoff * 2 ** (attempt - 1))
        try:
            return _call_once(call, patience.timeout)
        except Exception as error:
            last = error
            story = f"{type(error).__name__}: {error}"
            _log.warning("reward %r failed (attempt %d of %d): %s", name, attempt + 1, attempts, story)
    raise Failure(story) from last


def _call_once(call: Callable[[], Any], timeout: float | None) -> Any:
    """Run ``call`` in its own thread; past the deadline it is left behind, for threads cannot be ended."""
    outcome: dict[str, Any] = {}
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def work() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # the current device belongs to a thread
            with torch.no_grad():  # and so does the gradient mode
                result = call()
                outcome["result"] = asyncio.run(_await(result)) if inspect.isawaitable(result) else result
        except BaseException as error:  # a thread cannot raise into its caller
            outcome["error"] = error

    thread = threading.Thread(target=work, name="imgrl-reward", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {timeout:g} s")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


async def _await(result: Any) -> Any:
    return await result
