"""``imgrl doctor``: what this machine has, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib import metadata
from typing import Any

import typer

from imgrl.cli.common import AsJson, print_json, screen

__all__ = ["doctor", "findings"]

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "torchvision",
    "easyocr",
)
_GIB = 2**30


def doctor(as_json: AsJson = False) -> None:
    """Report versions, devices, memory, bundled files and permissions; exit 1 if something must be fixed."""
    found = findings()
    if as_json:
        print_json(found)
    else:
        _show(found)
    raise typer.Exit(1 if found["problems"] else 0)


def findings() -> dict[str, Any]:
    """Everything the report says, as plain values; ``problems`` are sentences that say what to do."""
    from imgrl import __version__

    problems: list[str] = []
    return {
        "imgrl": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "torchvision": _torchvision(problems),
        "devices": _devices(),
        "memory_gib": _memory(),
        "disk_free_gib": round(shutil.disk_usage(".").free / _GIB, 1),
        "bundled": _bundled(problems),
        "writable": _writable(problems),
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torchvision(problems: list[str]) -> str:
    if _version("torchvision") is None:
        return "absent (only some rewards need it)"
    try:
        import torchvision.transforms  # noqa: F401
    except Exception as error:  # a broken binary raises anything
        problems.append(f"torchvision cannot be imported ({error}); install the build that matches torch")
        return "broken"
    from imgrl import _compat

    return "works with imgrl's repair of its operators" if _compat.repair_torchvision() else "works"


def _devices() -> list[str]:
    import torch

    names = [f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"]
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / _GIB
        names.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)
    except (ValueError, OSError, AttributeError):  # not every system tells
        return None


def _bundled(problems: list[str]) -> dict[str, Any]:
    from imgrl.errors import ImgrlError
    from imgrl.resources import asset, recipe_names
    from imgrl.rewards.registry import REWARDS

    out: dict[str, Any] = {"rewards": {name: entry.available() for name, entry in REWARDS.items()}}
    try:
        out["tiny-sd3"] = str(asset("tiny-sd3"))
        out["recipes"] = recipe_names()
    except ImgrlError as error:
        problems.append(str(error))
    return out


def _writable(problems: list[str]) -> bool:
    try:
        with tempfile.TemporaryFile(dir="."):
            return True
    except OSError as error:
        problems.append(
            f"{os.getcwd()} cannot be written to ({error.strerror}); set run.dir to a folder that can"
        )
        return False


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False)
    table.add_row("imgrl, python", f"{found['imgrl']}, {found['python']}")
    for name, version in found["packages"].items():
        table.add_row(name, version or "not installed")
    table.add_row("torchvision", found["torchvision"])
    for line in found["devices"]:
        table.add_row("device", line)
    table.add_row("memory", "unknown" if found["memory_gib"] is None else f"{found['memory_gib']} GiB")
    table.add_row("free disk here", f"{found['disk_free_gib']} GiB")
    table.add_row("bundled model", found["bundled"].get("tiny-sd3", "missing"))
    usable = [name for name, here in found["bundled"]["rewards"].items() if here]
    table.add_row("usable rewards", ", ".join(usable))
    table.add_row("writable here", "yes" if found["writable"] else "no")
    console = screen()
    console.print(table)
    for problem in found["problems"]:
        console.print(f"problem: {problem}", markup=False)
    if not found["problems"]:
        console.print("no problems found")
