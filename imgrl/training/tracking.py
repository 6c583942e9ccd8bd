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
        self.file, self.faults, self.world = folder / "metrics.jsonl", folder / "faults.jsonl", world

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Write one row for a round."""
        self._append(self.file, finite({"round": round, **values}))
        self.world.accelerator.log(dict(values), step=round)

    def fault(self, round: int, story: Mapping[str, Any]) -> None:
        """Write one row of ``faults.jsonl``: what failed in a round."""
        self._append(self.faults, {"round": round, **story})

    def rewind(self, round: int) -> None:
        """Drop rows after ``round``: a resumed run writes them again."""
        for file in (self.file, self.faults):
            self._keep(file, lambda line: _round_of(line) <= round)

    def forget_final(self, round: int) -> None:
        """Drop a final measurement after the same round, which is made again when a finished run is resumed."""
        self._keep(self.file, lambda line: not ('"final": ' in line and _round_of(line) == round))

    def _append(self, file: Path, row: Mapping[str, Any]) -> None:
        if self.world.main:
            with file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")

    def _keep(self, file: Path, wanted: Callable[[str], bool]) -> None:
        if not self.world.main or not file.exists():
            return
        rows = [line for line in file.read_text().splitlines() if wanted(line)]
        replace(file, "".join(f"{row}\n" for row in rows))

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
