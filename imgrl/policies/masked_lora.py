"""A LoRA that may change some entries of a matrix only: W0 + M * (s B A), the mask M chosen before training.

What trains, and what the optimiser keeps, stays as small as a LoRA. The masked product however has full rank: it is
made anew in every forward pass and again in the backward pass, and no LoRA file can hold it, so that such a model is
written as a whole.

Peft has a place for this, ``LoraLayer.lora_variant``, which its own DoRA uses; ``tests/policies/test_masked_lora.py``
pins what is expected of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imgrl.errors import ConfigError

__all__ = ["MaskedProduct", "change", "confine", "is_confined", "merged_state", "within"]

_MASK = "may_change"


class MaskedProduct:
    """What peft asks of a variant: a layer's output, and its weights with the update put in and taken out."""

    @staticmethod
    def forward(module: Any, *, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """The stored layer's ``result`` [*, out] plus what the masked update makes of the input [*, in]."""

        def update(x: Tensor) -> Tensor:
            delta = change(module, active_adapter)
            return nn.functional.linear(x, delta.T if module.fan_in_fan_out else delta)

        x = module.lora_dropout[active_adapter](x)
        return result + checkpoint(update, x, use_reentrant=False, preserve_rng_state=False)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """A new tensor: the stored weights with the update."""
        return orig_weight + change(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Put the update into the stored weights."""
        orig_weight.data += change(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The stored weights without the update."""
        return orig_weight - change(module, active_adapter).to(orig_weight.dtype)


def confine(layer: Any, mask: Tensor | None, *adapters: str) -> None:
    """Let adapters of a layer change entries within a mask only.

    Args:
        layer: peft's layer around a linear one.
        mask: boolean, of the stored weight's shape; None for the mask the layer already has.
        adapters: names, all of one mask.

    Raises:
        ConfigError: if the layer is no linear one, whose update is no product of its factors alone.
    """
    from peft.tuners.lora import Linear

    if not isinstance(layer, Linear):
        raise ConfigError(
            f"model.mask fits a LoRA on linear layers only, but model.lora.targets names a "
            f"{type(layer.get_base_layer()).__name__}; leave it out of them"
        )
    if mask is not None:
        layer.register_buffer(_MASK, mask, persistent=False)
    variants: Any = layer.lora_variant
    for name in adapters:
        variants[name] = MaskedProduct()


def is_confined(layer: Any) -> bool:
    """Whether a layer's update is masked."""
    return hasattr(layer, _MASK)


def change(layer: Any, adapter: str) -> Tensor:
    """What an adapter adds to the stored weight, of its shape; exactly zero outside the layer's mask."""
    return within(layer, layer.get_delta_weight(adapter))


def within(layer: Any, update: Tensor) -> Tensor:
    """An update of a layer's stored weight less what the layer's mask, if it has one, forbids."""
    return torch.where(getattr(layer, _MASK), update, 0.0) if is_confined(layer) else update


@torch.no_grad()
def merged_state(network: nn.Module, adapters: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """The state of the stock network with the updates of ``adapters`` in its weights, by the stock names."""
    from peft.tuners.lora import LoraLayer

    layers = {path: layer for path, layer in network.named_modules() if isinstance(layer, LoraLayer)}
    for key, tensor in network.state_dict().items():
        if ".lora_" in key:
            continue
        path = key.removesuffix(".base_layer.weight")
        if path != key and path in layers:
            update = sum(change(layers[path], name).float() for name in adapters)
            tensor = (tensor.float() + update).to(tensor.dtype)
        yield key.replace(".base_layer.", "."), tensor
