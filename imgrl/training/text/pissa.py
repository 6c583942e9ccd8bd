"""What peft leaves open of PiSSA (2404.02948), which trains W0 - s B0 A0 + s B A from the leading part s B0 A0 of W0.

Peft takes that part off the base in memory and repeats the decomposition whenever a run is opened again, which another
machine may answer with other directions. So the factors as they started are an anchor, saved and resumed with the
others; and the model a run leaves behind is a plain LoRA on the base as it is stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imgrl.errors import ConfigError
from imgrl.policies.masked_lora import within

__all__ = [
    "ADAPTER",
    "check_directions",
    "is_pissa",
    "lora_layers",
    "make_plain",
    "product",
    "start_from",
    "tied_layer",
]

ADAPTER = "default"
"""Peft's name for the only one there is."""

_TENSORS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def is_pissa(model: Any) -> bool:
    """Whether a model's adapter began as PiSSA."""
    configs = getattr(model, "peft_config", {})
    return ADAPTER in configs and configs[ADAPTER].init_lora_weights == "pissa"


def check_directions(model: Any) -> None:
    """Refuse a rank above what a matrix has, which peft would cut without a word.

    Raises:
        ConfigError: naming the layer.
    """
    rank = model.peft_config[ADAPTER].r
    for path, layer in lora_layers(model):
        found = layer.lora_A[ADAPTER].weight.shape[0]
        if found < rank:
            raise ConfigError(
                f"model.lora.init=pissa takes as many directions as model.lora.rank, {rank}, but {path} has only "
                f"{found}; lower the rank, or choose init=gaussian"
            )


@torch.no_grad()
def start_from(model: Any, now: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Take the part ``saved`` off the base in place of the part ``now``; equal ones leave every bit as it is.

    Args:
        model: whose base lacks s B A of ``now``.
        now: the factors as they started here, by parameter name.
        saved: as they started where the run began.
    """
    for path, layer in lora_layers(model):
        names = [f"{path}.lora_{part}.{ADAPTER}.weight" for part in "AB"]
        if all(torch.equal(now[name], saved[name]) for name in names):
            continue
        (a, b), (a_saved, b_saved) = ([part[name] for name in names] for part in (now, saved))
        update = product(layer, b, a) - product(layer, b_saved, a_saved)
        layer.get_base_layer().weight += within(layer, update)


def make_plain(folder: Path, start: Mapping[str, Tensor]) -> None:
    """Rewrite a saved PiSSA adapter as a LoRA of twice the rank on the stored base: [B, -B0] [A; A0].

    Args:
        folder: as peft saved it.
        start: the factors as they started, by parameter name.
    """
    state = load_file(folder / _TENSORS)
    for name, tensor in state.items():
        for part, dim, sign in ((".lora_A.", 0, 1), (".lora_B.", 1, -1)):
            if part in name:
                first = start[name.replace(".weight", f".{ADAPTER}.weight")].cpu().to(tensor.dtype)
                state[name] = torch.cat([tensor, sign * first], dim).contiguous()
    config = json.loads((folder / _CONFIG).read_text())
    config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
    save_file(state, folder / _TENSORS, {"format": "pt"})
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def product(layer: Any, b: Tensor, a: Tensor) -> Tensor:
    """The update s B A as the layer stores its weight, which GPT-2's lie transposed."""
    update = layer.scaling[ADAPTER] * b @ a
    return update.T if layer.fan_in_fan_out else update


def tied_layer(model: Any) -> str | None:
    """A layer with an adapter whose matrix is the embedding's too: a change merged into one would be one of both."""
    embedding = model.get_input_embeddings()
    own = getattr(embedding, "base_layer", embedding).weight
    tied = (path for path, layer in lora_layers(model) if layer.get_base_layer().weight is own)
    return next((path for path in tied if model.get_submodule(path) is not embedding), None)


def lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter, by path."""
    from peft.tuners.lora import LoraLayer

    return ((path, layer) for path, layer in model.named_modules() if isinstance(layer, LoraLayer))
