"""Ctrl-C asks the loop to stop after the round; a second one, a second later or more, stops at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupt"]


class Interrupt:
    """Inside the block, the first SIGINT or SIGTERM sets ``asked`` instead of raising."""

    repeat = 1.0
    """Seconds in which a further signal is the same one again: launchers such as torchrun pass on what the
    terminal has already sent to every process."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        del number
        now = time.monotonic()
        if self.asked and now - self._since > self.repeat:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._since = True, now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
