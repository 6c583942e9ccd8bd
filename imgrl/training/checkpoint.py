"""Full-state checkpoints: written beside, then renamed; verified by digest when read.

A checkpoint folder ``checkpoints/step-N`` (N rounds done) holds

    weights.safetensors     every named weight, keys ``name/parameter``
    optimizer.safetensors   moments, keys ``index/moment``
    rewards.safetensors     tensors of rewards that learn
    state.json              counters, sampler, the sha256 of every other file and of its own content
    config.yaml             the resolved recipe
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imgrl.errors import CheckpointError

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = [
    "FORMAT",
    "latest_checkpoint",
    "list_checkpoints",
    "load_weights",
    "pack",
    "prune",
    "read_checkpoint",
    "read_state",
    "unpack",
    "write_checkpoint",
]

FORMAT = 1


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder, or None."""
    found = list_checkpoints(run)
    return found[-1] if found else None


def write_checkpoint(
    run: Path,
    round: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    config: str,
) -> Path:
    """Write a checkpoint atomically: a crash or a full disk leaves the earlier ones as they were.

    Args:
        run: run folder.
        round: rounds done; names the folder.
        tensors: file stem to named tensors.
        state: plain values; kept in state.json.
        config: the resolved recipe.

    Raises:
        CheckpointError: if the disk refuses; nothing half-written remains.
    """
    final = run / "checkpoints" / f"step-{round}"
    partial = final.with_name(f".{final.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for stem, group in tensors.items():
            ready = {name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}
            save_file(ready, partial / f"{stem}.safetensors")
        (partial / "config.yaml").write_text(config)
        digests = {file.name: _digest(file) for file in sorted(partial.iterdir())}
        body = {"format": FORMAT, "round": round, "files": digests} | dict(state)
        (partial / "state.json").write_text(json.dumps(body | {"digest": _self_digest(body)}, indent=1))
        for file in partial.iterdir():
            _flush(file)
        if final.exists() and _same_tensors(final, digests):  # saved, then resumed without a further round
            shutil.rmtree(partial)
            return final
        _put(partial, final)
        _flush(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"The checkpoint {final} could not be written ({error}); earlier checkpoints are untouched. Free some "
            f"space or allow writing there, then continue with `imgrl train --resume {run}`."
        ) from error
    return final


def _put(partial: Path, final: Path) -> None:
    """Give a whole checkpoint its name; one that has it is moved aside whole, and back if that fails."""
    aside = final.with_name(f".{final.name}.aside.partial")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    try:
        partial.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and leftovers of interrupted writes."""
    for path in list_checkpoints(run)[:-keep]:
        gone = path.with_name(f".{path.name}.partial")
        path.rename(gone)  # first, so that a crash never leaves half a checkpoint under a good name
        shutil.rmtree(gone, ignore_errors=True)
    for path in (run / "checkpoints").glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    """Return the plain values of a checkpoint, without looking at its other files.

    Raises:
        CheckpointError: if they are missing, changed or of another format.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        if not isinstance(state, dict):
            raise ValueError("state.json holds no object")
    except (OSError, ValueError) as error:  # bytes that are no text or no JSON are ValueErrors too
        raise CheckpointError(f"{folder} is no readable checkpoint ({error}); {_other(folder)}") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {state.get('format')}, this version of imgrl reads {FORMAT}; continue it "
            "with the version that wrote it, or start a new run from its exported weights."
        )
    if state.pop("digest", None) != _self_digest(state):
        raise CheckpointError(f"{folder / 'state.json'} was changed after it was written; {_other(folder)}")
    return state


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return (state, tensors by file stem) of a checkpoint after checking every byte of it.

    Raises:
        CheckpointError: if a file is missing, changed or of another format.
    """
    state = read_state(folder)
    tensors = {}
    for name, digest in state["files"].items():
        file = folder / name
        if not file.is_file() or _digest(file) != digest:
            raise CheckpointError(f"{file} is missing or was changed after it was written; {_other(folder)}")
        if file.suffix == ".safetensors":
            tensors[file.stem] = load_file(file)
    return state, tensors


def load_weights(folder: Path, policy: Policy, name: str = "current") -> None:
    """Load one of a checkpoint's named weights as the policy's current ones.

    Raises:
        CheckpointError: if the checkpoint is damaged or has no such weights.
        ModelError: if they do not fit the policy.
    """
    _, tensors = read_checkpoint(folder)
    saved = unpack(tensors["weights"])
    if name not in saved:
        raise CheckpointError(f"{folder} has no weights {name!r}; it holds {', '.join(sorted(saved))}.")
    for lasting in policy.weights.lasting:
        policy.weights.load_state_dict(lasting, saved[lasting])
    policy.weights.load_state_dict("current", saved[name])


def pack(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Flatten ``{group: {name: tensor}}`` to ``{"group/name": tensor}``."""
    return {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}


def unpack(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Undo :func:`pack`."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts of an optimiser by parameter index."""
    state = optimizer.state_dict()["state"]
    return pack({str(i): {k: torch.as_tensor(v) for k, v in entry.items()} for i, entry in state.items()})


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Undo :func:`optimizer_tensors`."""
    state = optimizer.state_dict()
    state["state"] = {int(i): dict(entry) for i, entry in unpack(flat).items()}
    optimizer.load_state_dict(state)


def _self_digest(state: Mapping[str, Any]) -> str:
    """Digest of a state's values as JSON keeps them, however it is laid out."""
    kept = json.loads(json.dumps(state))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _same_tensors(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether an undamaged checkpoint holds tensor files with these digests."""
    names = {name for name in digests if name.endswith(".safetensors")}
    try:
        read_checkpoint(folder)
    except CheckpointError:
        return False
    return all(_digest(folder / name) == digests[name] for name in names)


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Force a file or folder to the disk before the rename that makes it count."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _other(folder: Path) -> str:
    run = folder.parent.parent
    others = [path.name for path in list_checkpoints(run) if path != folder]
    if others:
        return f"remove that folder to resume from {others[-1]}."
    return "there is no other checkpoint in this run, so start it again."
