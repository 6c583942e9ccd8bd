"""What of a recipe may not change when a run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from imgrl.errors import CheckpointError
from imgrl.recipe import as_dict, flat_settings, lasting_settings

__all__ = ["require_same_settings"]


def require_same_settings(saved: Path, recipe: Any, *, until: str) -> None:
    """Refuse to go on with other settings than a run began with.

    Args:
        saved: the recipe it began with, as the run keeps it.
        recipe: of images or of texts.
        until: the key that says how long it trains.

    Raises:
        CheckpointError: naming the settings that differ, or if the file cannot be read.
    """
    now, usual = _lasting(recipe), _lasting(type(recipe)(objective=type(recipe.objective)()))
    try:
        then = flat_settings(lasting_settings(yaml.safe_load(saved.read_text())))
    except (OSError, yaml.YAMLError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{saved} cannot be read ({error}).") from error
    newer = (
        key for key in now if key not in then and not key.startswith("rewards.")
    )  # than the version that saved
    then |= {key: usual[key] for key in newer if key in usual}
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if not keys:
        return
    told = ", ".join(f"{key} ({then.get(key)!r} then, {now.get(key)!r} now)" for key in keys[:3])
    raise CheckpointError(
        f"{saved.parent} was trained with other settings than the recipe given now: {told}; only {until}, "
        "run.minutes, tracking and checkpoint may change on resume, so start a new run for new settings."
    )


def _lasting(recipe: Any) -> dict[str, Any]:
    return flat_settings(lasting_settings(as_dict(recipe)))
