"""The errors a user can cause, each one sentence: what was expected, what was given, what to do."""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "ImgrlError",
    "ModelError",
    "RewardError",
]


class ImgrlError(Exception):
    """Base of every error that the command line prints as one sentence instead of a traceback."""


class ConfigError(ImgrlError):
    """A recipe, override or combination of settings that cannot run as written."""


class DataError(ImgrlError):
    """A prompt file or data set that is missing, empty or malformed."""


class ModelError(ImgrlError):
    """A model folder that is missing, incomplete or of an unsupported family."""


class RewardError(ImgrlError):
    """A reward that cannot be found, breaks its contract or fails beyond the stated budget."""


class BudgetError(RewardError):
    """A reward that failed on more images than the run allows; every process raises it alike."""


class CheckpointError(ImgrlError):
    """A checkpoint that is corrupted, incomplete, or belongs to another run."""


class ExportError(ImgrlError):
    """An exported file that does not reproduce the trained model."""
