"""Other libraries' bars and pages, silenced where a run says the same in its own words."""

from __future__ import annotations

import logging
import warnings

__all__ = ["hush"]


def hush() -> None:
    """No loading bars, no advice to programmers, no page about each completion without a reward: they are counted."""
    import datasets
    import transformers

    trl = logging.getLogger("trl.trainer.grpo_trainer")
    if not any(isinstance(item, _LeftOut) for item in trl.filters):
        trl.addFilter(_LeftOut())

    # Of names that TRL gives transformers, which the user of a recipe cannot change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


class _LeftOut(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "returned None" not in record.getMessage()
