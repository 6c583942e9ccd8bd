"""Turns whatever a recipe or a caller names as a reward into one callable.

Accepted: a function, an instance with ``__call__``, a class, an ``async def``, the name of a built-in reward,
``"package.module:attribute"`` and ``"folder/file.py:attribute"``.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from imgrl.errors import RewardError
from imgrl.rewards.registry import REWARDS, require

__all__ = ["locate", "make"]


def make(
    use: str | Callable[..., Any], args: Mapping[str, Any] | None = None, *, name: str = "reward"
) -> Any:
    """Return the callable behind ``use``: a class constructed with ``args``, anything else bound with them.

    Raises:
        RewardError: if ``use`` names nothing, ``args`` do not fit, or the class cannot be constructed.
    """
    target = locate(use, name=name) if isinstance(use, str) else use
    args = dict(args or {})
    if not callable(target):
        raise RewardError(
            f"Reward {name!r} must be a function, a class or an object that can be called, "
            f"got {type(target).__name__}."
        )
    _check_args(target, args, name)
    if inspect.isclass(target):
        return _construct(target, args, name)
    return functools.partial(target, **args) if args else target


def locate(use: str, *, name: str = "reward") -> Any:
    """Return the object that a text names: a built-in reward, ``module:attribute`` or ``file.py:attribute``.

    Raises:
        RewardError: if it does not exist, with the nearest known name where there is one.
    """
    if use in REWARDS:
        require(use)
        use = REWARDS[use].factory
    place, colon, attribute = use.rpartition(":")
    if not colon:
        raise RewardError(
            f"Reward {name!r} uses {use!r}, which is no built-in reward ({', '.join(REWARDS)})"
            f"{_nearest(use, REWARDS)}; a reward of your own is written 'package.module:attribute' or "
            "'folder/file.py:attribute'."
        )
    module = _load_file(Path(place), name) if place.endswith(".py") else _load_module(place, name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [key for key in vars(module) if not key.startswith("_")]
            raise RewardError(f"Reward {name!r}: {place} has no {attribute!r}{_nearest(attribute, names)}.")
        found = getattr(found, part)
    return found


def _nearest(word: str, names: Any) -> str:
    near = difflib.get_close_matches(word, list(names), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _load_module(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise RewardError(
            f"Reward {name!r}: the module {place!r} cannot be imported ({type(error).__name__}: {error})."
        ) from error


def _load_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise RewardError(f"Reward {name!r}: there is no file {path.resolve()}.")
    key = f"imgrl_user_reward_{abs(hash(path.resolve()))}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise RewardError(
            f"Reward {name!r}: running {path.resolve()} failed ({type(error).__name__}: {error})."
        ) from error
    return module


def _check_args(target: Any, args: Mapping[str, Any], name: str) -> None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"Reward {name!r}: the parameters of {target!r} cannot be read; wrap it in a function "
            "`def reward(images, prompts, **columns)`."
        ) from error
    parameters = signature.parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in args:
            if key not in named:
                raise RewardError(
                    f"Reward {name!r} takes no argument {key!r}{_nearest(key, named)}; it takes "
                    f"{', '.join(named) or 'none'}."
                )
    if inspect.isclass(target):
        try:
            signature.bind(**args)
        except TypeError as error:
            raise RewardError(f"Reward {name!r} cannot be constructed from its args: {error}.") from error


def _construct(target: type, args: Mapping[str, Any], name: str) -> Any:
    try:
        made = target(**args)
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(
            f"Reward {name!r}: constructing {target.__name__} failed ({type(error).__name__}: {error})."
        ) from error
    if not callable(made):
        raise RewardError(
            f"Reward {name!r}: {target.__name__} needs a method `__call__(self, images, prompts, **columns)`."
        )
    return made
