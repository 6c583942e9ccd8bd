"""The watch over how far a language model's weights have moved, with a LoRA as without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from imgrl.analysis.watch import DriftWatch
from imgrl.policies.masked_lora import change, within
from imgrl.training.text.masking import has_confined
from imgrl.training.text.pissa import ADAPTER, lora_layers, product
from imgrl.training.text.sharding import gather_anew, trainable, whole

__all__ = ["drift_watch"]


def drift_watch(model: Any, *, start: Mapping[str, Tensor]) -> DriftWatch:
    """A watch from the weights before training, of a model that has not loaded a checkpoint yet.

    Args:
        model: the model to be trained. With a LoRA, each matrix is what is stored and what the adapter adds to it.
        start: PiSSA's factors as they started, by parameter name, which peft took off what is stored; else empty.
    """
    if not hasattr(model, "peft_config"):

        def now(name: str) -> Tensor:  # by name: sharding puts other parameters in the place of these
            return whole(dict(trainable(model))[name])

        return DriftWatch(trainable(model), now=now)
    layers = {
        path: layer
        for path, layer in lora_layers(model)
        if ADAPTER in layer.lora_A and layer.get_base_layer().weight.ndim == 2  # no embedding, no convolution
    }

    def began(path: str) -> tuple[Tensor, Tensor]:
        b, a = (start[f"{path}.lora_{part}.{ADAPTER}.weight"] for part in "BA")
        return b, a

    def update(path: str) -> tuple[Tensor, Tensor]:
        layer = layers[path]
        gather_anew(model)
        b, a = whole(layer.lora_B[ADAPTER].weight), whole(layer.lora_A[ADAPTER].weight)
        if start:  # B A - B0 A0
            b0, a0 = began(path)
            b, a = torch.cat([b, -b0], 1), torch.cat([a, a0])
        b = layer.scaling[ADAPTER] * b
        return (a.T, b.T) if layer.fan_in_fan_out else (b, a)

    def stored() -> Iterator[tuple[str, Tensor]]:
        for path, layer in layers.items():
            weight = layer.get_base_layer().weight.detach()
            if start:
                b0, a0 = began(path)
                weight = (weight + within(layer, product(layer, b0, a0))).cpu()
            yield path, weight

    def changed(path: str) -> Tensor:
        layer = layers[path]
        return (layer.get_base_layer().weight + change(layer, ADAPTER)).detach()

    if has_confined(model):  # its change has no factors
        return DriftWatch(stored(), now=changed)
    return DriftWatch(stored(), update=update)
