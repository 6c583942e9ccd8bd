"""Numbers out of a run: metrics.jsonl always, other trackers through accelerate when asked."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from imgrl.training.distributed import World
from imgrl.training.run_folder import finite, replace

__all__ = ["Metrics", "environment"]

_PACKAGES = ("imgrl", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy")


class Metrics:
    """Appends rows to ``metrics.jsonl`` and hands them to accelerate's trackers; only the main process writes."""

    def __init__(self, folder: Path, world: World) -> None:
        self.file, self.world = folder / "metrics.jsonl", world

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Write one row for a round."""
        if self.world.main:
            with self.file.open("a") as handle:
                handle.write(json.dumps(finite({"round": round, **values})) + "\n")
        self.world.accelerator.log(dict(values), step=round)

    def rewind(self, round: int) -> None:
        """Drop rows after ``round``: a resumed run writes them again."""
        self._keep(lambda line: _round_of(line) <= round)

    def forget_final(self, round: int) -> None:
        """Drop a final measurement after the same round, which is made again when a finished run is resumed."""
        self._keep(lambda line: not ('"final": ' in line and _round_of(line) == round))

    def _keep(self, wanted: Callable[[str], bool]) -> None:
        if not self.world.main or not self.file.exists():
            return
        rows = [line for line in self.file.read_text().splitlines() if wanted(line)]
        replace(self.file, "".join(f"{row}\n" for row in rows))

    def rows(self) -> list[dict[str, float]]:
        """Everything logged so far, on the main process."""
        if not self.world.main or not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text().splitlines()]


def _round_of(line: str) -> float:
    try:
        return json.loads(line)["round"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut short by a crash


def environment(world: World) -> dict[str, Any]:
    """Versions and hardware, for ``environment.json``."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device or world.device.type,
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "packages": versions,
    }
