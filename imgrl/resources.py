"""Where the files beside the code lie: inside the installed package, or in a checkout of the repository."""

from __future__ import annotations

from pathlib import Path

from imgrl.errors import ConfigError

__all__ = ["asset", "model_path", "recipe_names", "recipe_path", "resource_root"]

_PACKAGE = Path(__file__).resolve().parent


def resource_root(kind: str) -> Path:
    """Return the folder ``assets`` or ``configs``: the packaged one first, the checkout's otherwise.

    A wheel carries both inside the package; an editable install and a checkout keep them beside it.

    Raises:
        ConfigError: if neither place has it, which means a broken installation.
    """
    places = [_PACKAGE / kind, _PACKAGE.parent / kind]
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(
        f"imgrl's {kind} folder was expected at {places[0]} or {places[1]} and is at neither; reinstall imgrl"
    )


def asset(name: str) -> Path:
    """Return the path of a bundled asset, such as ``tiny-sd3``.

    Raises:
        ConfigError: if there is no such asset; the message lists those there are.
    """
    root = resource_root("assets")
    path = root / name
    if not path.exists():
        there = ", ".join(sorted(entry.name for entry in root.iterdir())) or "none"
        raise ConfigError(f"no bundled asset is called {name!r}; there are: {there}")
    return path


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes, such as ``tiny-sd3/crd``."""
    root = resource_root("configs")
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def recipe_path(name: str | Path) -> Path:
    """Return the file of a recipe given as a path or as the name of a bundled one.

    Raises:
        ConfigError: if there is neither such a file nor such a bundled recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = Path(name).as_posix().removesuffix(".yaml").removeprefix("configs/")
    if bundled in recipe_names():
        return resource_root("configs") / f"{bundled}.yaml"
    raise ConfigError(
        f"recipe {str(name)!r} is neither a file nor a bundled recipe; "
        f"bundled are: {', '.join(recipe_names())}"
    )


def model_path(name: str | Path) -> Path | str:
    """Return a model's folder: as given if it is one, else the bundled one, else the name (a hub's)."""
    if Path(name).is_dir():
        return Path(name)
    folder = resource_root("assets") / name
    if "/" not in str(name) and any(
        (folder / file).is_file() for file in ("model_index.json", "config.json")
    ):
        return folder
    return name
