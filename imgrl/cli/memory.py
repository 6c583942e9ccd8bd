"""How much memory a recipe will take, from file headers and arithmetic; no weight is loaded.

Parameters, adapters and optimiser are counted. Activations are rough: 34 numbers a token and layer of
the transformer's width, the usual count for attention and a four-fold MLP; checkpointing keeps one.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgrl.errors import ModelError

if TYPE_CHECKING:
    from imgrl.recipe import Recipe

__all__ = ["Estimate", "estimate", "tensor_shapes"]

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_NUMBERS_A_TOKEN = 34


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes on each process."""

    transformer: int
    vae: int
    encoders: int
    """Held only until the prompts are encoded."""
    trained: int
    """Trained tensors with their copies, gradients and the optimiser's two moments, all float32."""
    activations: int
    """Rough: of one micro-batch's forward and backward."""

    @property
    def training(self) -> int:
        """While training, encoders gone."""
        return self.transformer + self.vae + self.trained + self.activations


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read name and shape of every tensor from the headers of a component's safetensors files.

    Raises:
        ModelError: if a file is cut short or no safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(min(length, 100_000_000)))
            shapes |= {
                name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
            }
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{file} is not a whole safetensors file; download it again") from error
    return shapes


def estimate(recipe: Recipe, folder: Path, *, processes: int = 1) -> Estimate:
    """Estimate the memory of training ``recipe`` on the model in ``folder``."""
    from imgrl.policies import inspect_folder
    from imgrl.training.geometry import kept_copies

    kind = inspect_folder(folder)
    model, width = recipe.model, _BYTES[recipe.model.dtype]
    network = tensor_shapes(folder / "transformer")
    size = sum(prod(shape) for shape in network.values())
    encoders = sum(
        prod(shape) for part in folder.glob("text_encoder*") for shape in tensor_shapes(part).values()
    )
    full = model.train == "full"
    under = [] if full else _adapted(network, recipe, kind.default_targets)
    trainable = size if full else recipe.model.lora.rank * sum(sum(shape) for shape in under)
    masked = sum(prod(shape) for shape in under) if model.mask is not None else 0  # a byte an entry
    copies = 1 + len(kept_copies(recipe)) + (not full and recipe.model.lora.init == "pissa")
    return Estimate(
        transformer=0 if full else size * width,
        vae=sum(prod(shape) for shape in tensor_shapes(folder / "vae").values()) * 4,
        encoders=encoders * width,
        trained=trainable * 4 * (copies + 1 + 2 + (1 if full else 0)) + masked,
        activations=_activations(recipe, folder, processes) * width,
    )


def _adapted(
    network: dict[str, tuple[int, ...]], recipe: Recipe, default: tuple[str, ...]
) -> list[tuple[int, ...]]:
    """Shapes of the matrices under a LoRA."""
    targets: Any = recipe.model.lora.targets
    targets = default if targets == "default" else targets
    layers = {
        name.removesuffix(".weight"): shape
        for name, shape in network.items()
        if "transformer_blocks." in name and name.endswith(".weight") and len(shape) == 2
    }
    return [
        shape
        for name, shape in layers.items()
        if targets == "all-linear" or any(name == t or name.endswith("." + t) for t in targets)
    ]


def _activations(recipe: Recipe, folder: Path, processes: int) -> int:
    config = json.loads((folder / "transformer" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    patch = config.get("patch_size", 2) if "Flux" not in config["_class_name"] else 2
    size = config.get("sample_size", 128)
    height = (recipe.model.height or size * factor) // factor // patch
    width = (recipe.model.width or size * factor) // factor // patch
    tokens = height * width + (recipe.model.max_sequence_length or 256)
    layers = config["num_layers"] + config.get("num_single_layers", 0)
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    kept = layers + _NUMBERS_A_TOKEN if recipe.model.gradient_checkpointing else layers * _NUMBERS_A_TOKEN
    rows = recipe.batch.micro_groups * recipe.batch.group_size // processes
    return rows * tokens * dim * kept
