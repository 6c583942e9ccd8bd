"""A trained model ready to sample: base folder plus, if given, an exported LoRA of any rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgrl.cli.common import choose_device
from imgrl.errors import ModelError
from imgrl.resources import model_path

if TYPE_CHECKING:
    from imgrl.policies import LoraSpec, Policy

__all__ = ["DeviceName", "LoraPath", "ModelName", "Precision", "load_for_sampling"]

ModelName = Annotated[str, typer.Option(help="A diffusers folder, hub name or bundled model.")]
LoraPath = Annotated[
    Path | None, typer.Option(help="An exported LoRA: its file, its folder, or the run that wrote it.")
]
DeviceName = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: what there is.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]


def load_for_sampling(model: str, lora: Path | None, *, dtype: str, device: str | None) -> Policy:
    """Load a model whose weights ``current`` are the base model's, with the LoRA if one is given.

    Raises:
        ModelError: if either is missing or they do not fit.
    """
    from imgrl.policies import load_policy

    where = choose_device(device)
    if lora is None:
        return load_policy(
            model_path(model),
            train="none",
            dtype=dtype,  # type: ignore[arg-type]
            device=where,
            fold_zero_tokens=True,
        )
    from imgrl.policies.export import load_lora

    file = _lora_file(lora)
    spec = _spec(file)
    policy = load_policy(
        model_path(model),
        train="lora",
        lora=spec,
        dtype=dtype,  # type: ignore[arg-type]
        device=where,
        fold_zero_tokens=True,
    )
    load_lora(policy, file)
    return policy


def _lora_file(path: Path) -> Path:
    from imgrl.policies.export import LORA_FILE

    for file in (path, path / LORA_FILE, path / "lora" / LORA_FILE):
        if file.is_file():
            return file
    raise ModelError(f"there is no LoRA at {path}; give {LORA_FILE}, its folder, or a run folder")


def _spec(file: Path) -> LoraSpec:
    """Rank and layers as the file has them; alpha equals rank because the export folds the scale into B."""
    from safetensors import SafetensorError, safe_open

    from imgrl.policies import LoraSpec

    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys() if ".lora_A." in key}
    except SafetensorError as error:
        raise ModelError(f"{file} is not a safetensors file: {error}") from error
    ranks = {shape[0] for shape in shapes.values()}
    if len(ranks) != 1:
        raise ModelError(
            f"{file} must hold LoRA layers of one rank, but has the ranks {sorted(ranks) or 'none'}"
        )
    rank = ranks.pop()
    paths = (key.removeprefix("transformer.").split(".lora_A.")[0] for key in shapes)
    return LoraSpec(rank=rank, alpha=float(rank), targets=tuple(paths))
