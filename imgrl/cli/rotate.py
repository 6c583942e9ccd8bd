"""``imgrl rotate``: the same function in other weights, to train from as a control for ``imgrl diagnose``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from imgrl.errors import ConfigError, ModelError

__all__ = ["rotate"]

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def rotate(
    model: Annotated[
        str, typer.Argument(help="A language model's folder, a diffusers pipeline's, or a bundled model.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    kind: Annotated[
        Literal["haar", "hadamard"],
        typer.Option(help="Of the rotations; hadamard needs heads of a power of two."),
    ] = "haar",
    seed: Annotated[int, typer.Option(min=0, help="Of the rotations.")] = 0,
) -> None:
    """Rotate the values of every attention head and undo it in the output: another base, the same function.

    Train from both alike; then `imgrl diagnose MODEL TUNED --rotated OUT TUNED2` says whether the same weights changed.
    """
    from imgrl.resources import model_path

    folder = Path(model_path(model))
    if not folder.is_dir():
        raise ModelError(f"{model} is neither a model's folder on this disk nor a bundled model")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already holds something; name a new or an empty folder")
    part = "transformer" if (folder / "model_index.json").is_file() else "."
    network, heads, kv_heads = _load(folder / part)
    from imgrl.analysis.rotation import rotate_attention

    edited = rotate_attention(network, heads=heads, kv_heads=kv_heads, kind=kind, seed=seed)
    shutil.copytree(folder, out, dirs_exist_ok=True)
    for pattern in _WEIGHTS:  # another number of shards may be written now
        for file in (out / part).glob(pattern):
            file.unlink()
    network.save_pretrained(out / part)
    typer.echo(f"{out}: {len(edited)} weights rotated, from {edited[0]} to {edited[-1]}")
    typer.echo(
        f"Train from {model} and from {out} alike, then: imgrl diagnose {model} TUNED --rotated {out} TUNED2"
    )


def _load(folder: Path) -> tuple[Any, int, int | None]:
    """The network with attention, its query heads and its key/value heads, None for as many."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no config.json that can be read: {error}") from error
    try:
        if "_class_name" in config:
            import diffusers

            return (
                getattr(diffusers, config["_class_name"]).from_pretrained(folder),
                config["num_attention_heads"],
                None,
            )
        from transformers import AutoModelForCausalLM

        network = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        own = network.config
        return network, own.num_attention_heads, getattr(own, "num_key_value_heads", None)
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(f"{folder} cannot be loaded as a model with attention heads: {error}") from error
