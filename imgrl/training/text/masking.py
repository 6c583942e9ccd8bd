"""A language model's LoRA under ``model.mask``: where its masks come from, and the whole model that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgrl.analysis.masks import MaskKind, training_masks
from imgrl.errors import ConfigError
from imgrl.policies.masked_lora import change, confine, is_confined, merged_state
from imgrl.training.text.pissa import ADAPTER, is_pissa, lora_layers, tied_layer

__all__ = ["confine_adapter", "has_confined", "matrices", "save_whole"]

_WRAPPED = "base_model.model."


def matrices(model: Any) -> dict[str, Tensor]:
    """The weights of a model without an adapter by layer; PiSSA will put others in their place."""
    named = model.named_parameters(remove_duplicate=False)
    return {name.removesuffix(".weight"): parameter.data for name, parameter in named}


@torch.no_grad()
def confine_adapter(model: Any, kind: MaskKind, *, before: Mapping[str, Tensor], seed: int) -> None:
    """Let the adapter of a model that is about to train change the entries of a mask only.

    Args:
        model: as peft wrapped it.
        kind: see :func:`imgrl.analysis.masks.training_mask`.
        before: its ``matrices`` before it was wrapped.
        seed: of a random mask.

    Raises:
        ConfigError: if a matrix is masked that is the embedding's too, or that belongs to no linear layer.
    """
    if (tied := tied_layer(model)) is not None:
        raise ConfigError(
            f"model.mask cannot confine a LoRA on {tied.removeprefix(_WRAPPED)}, whose matrix is the embedding's too: "
            "leave it out of model.lora.targets"
        )
    layers = {path.removeprefix(_WRAPPED): layer for path, layer in lora_layers(model)}
    masks = training_masks((before[path] for path in layers), kind, seed=seed)
    for path, layer in layers.items():
        confine(layer, masks.get(before[path]), *([ADAPTER] if before[path] in masks else []))
        if is_pissa(model):  # peft took all of the leading part off
            layer.get_base_layer().weight.data = before[path] - change(layer, ADAPTER)


def has_confined(model: Any) -> bool:
    """Whether a model's adapter is masked."""
    return any(is_confined(layer) for _, layer in lora_layers(model))


def save_whole(model: Any, folder: Path) -> None:
    """Write the stock model with the adapter's change in its weights."""
    inner = model.get_base_model()
    inner.save_pretrained(folder, state_dict=dict(merged_state(inner, [ADAPTER])))
