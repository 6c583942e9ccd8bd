"""LoRA adapters of one network as named weights, switched in place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imgrl.errors import ConfigError
from imgrl.policies.adapters import CURRENT, FROZEN, NamedWeights

__all__ = ["JOINT_ATTENTION", "LoraSpec", "LoraWeights", "target_modules"]

_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")

JOINT_ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
"""The published LoRA targets of SD3: attention projections of images and text; Flux adds its feed-forwards."""


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """Size, place and start of the LoRA adapters (defaults: the published SD3.5-M setting)."""

    rank: int = 32
    """Inner dimension r of each adapter."""
    alpha: float = 64.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] | Literal["default", "all-linear"] = "default"
    """Ends of module names inside the transformer blocks; "default" is the family's published list,
    "all-linear" is every linear layer of the blocks."""
    init: Literal["gaussian", "kaiming"] = "gaussian"
    """How A starts: normal with deviation 1/rank, or Kaiming-uniform; B starts at zero, which changes
    nothing."""
    seed: int = 0
    """Seed of A, so that every process starts equal."""

    def __post_init__(self) -> None:
        """Refuse sizes and names that cannot work."""
        if self.rank < 1 or not self.alpha > 0:
            raise ConfigError(
                f"LoRA needs rank >= 1 and alpha > 0, got rank {self.rank} and alpha {self.alpha}."
            )
        if self.init not in ("gaussian", "kaiming"):
            raise ConfigError(f"LoRA init must be 'gaussian' or 'kaiming', got '{self.init}'.")
        if isinstance(self.targets, str) and self.targets not in ("default", "all-linear"):
            raise ConfigError(
                f"LoRA targets must be 'default', 'all-linear' or a list of names, got '{self.targets}'."
            )


def target_modules(network: nn.Module, targets: Sequence[str] | str, default: Sequence[str]) -> list[str]:
    """Full paths of the linear layers inside the transformer blocks that ``targets`` names.

    Raises:
        ConfigError: one of the names matches no linear layer of the blocks.
    """
    linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and n.startswith(_BLOCKS)]
    if targets == "all-linear":
        return linear
    wanted = tuple(default if targets == "default" else targets)
    for name in wanted:
        if not any(_matches(path, name) for path in linear):
            raise ConfigError(
                f"LoRA target '{name}' matches no linear layer in the transformer blocks: use names such as "
                f"{', '.join(default[:4])}, or 'all-linear'."
            )
    return [path for path in linear if any(_matches(path, name) for name in wanted)]


def _matches(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)


class LoraWeights(NamedWeights):
    """One peft adapter a name; ``frozen`` is the network with its adapters switched off and costs nothing.

    Adapter tensors are float32 whatever the base network's dtype, so that small updates and slow averages
    survive.
    """

    def __init__(
        self, network: nn.Module, spec: LoraSpec, paths: Sequence[str], names: Sequence[str] = ()
    ) -> None:
        from peft.tuners.lora import LoraLayer

        network.requires_grad_(False)
        self.spec = spec
        self._network: Any = network
        self._paths = list(paths)
        self._names: tuple[str, ...] = ()
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._inject(CURRENT)
        self._layers: dict[str, Any] = {n: m for n, m in network.named_modules() if isinstance(m, LoraLayer)}
        self._register(CURRENT)
        self._initialise()
        self._switch(CURRENT)
        for name in names:
            self.add(name)

    @property
    def scaling(self) -> float:
        """Factor alpha / rank of every adapter's update."""
        return self.spec.alpha / self.spec.rank

    @property
    def names(self) -> tuple[str, ...]:
        """``current``, the copies made so far, and ``frozen``."""
        return (*self._names, FROZEN)

    def add(self, name: str) -> None:
        """Create the adapter ``name`` as an exact copy of ``current``; nothing happens if it exists."""
        if name in self.names:
            return
        previous = self._active
        self._inject(name)
        self._register(name)
        self._switch(previous)  # injecting activates the new adapter and its gradients
        self.copy(CURRENT, name)

    def tensors(self, name: str = CURRENT) -> dict[str, Tensor]:
        """The adapter's tensors: ``<module path>.lora_A.weight`` [r, in] and ``.lora_B.weight`` [out, r]."""
        return {} if name == FROZEN else self._tensors[name]

    def copy(self, source: str, target: str) -> None:
        """Overwrite ``target`` with ``source``; from ``frozen``, the update becomes zero (B = 0)."""
        if source != FROZEN:
            super().copy(source, target)
            return
        if target != CURRENT:
            self._require_copy(target)
        with torch.no_grad():
            for path, tensor in self._tensors[target].items():
                if ".lora_B." in path:
                    tensor.zero_()

    def scale(self, name: str, strength: float) -> None:
        """Scale what a set of weights changes in every layer, B A, by scaling B."""
        state = self.state_dict(name)
        self.load_state_dict(name, {k: t * strength if ".lora_B." in k else t for k, t in state.items()})

    def _inject(self, name: str) -> None:
        from peft import LoraConfig

        # alpha may be a fraction, whatever peft's annotation says
        config = LoraConfig(r=self.spec.rank, lora_alpha=self.spec.alpha, target_modules=self._paths)  # pyright: ignore[reportArgumentType]
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Already found a `peft_config`"
            )  # several are the point
            self._network.add_adapter(config, adapter_name=name)

    def _register(self, name: str) -> None:
        tensors: dict[str, Tensor] = {}
        for path, layer in self._layers.items():
            for part in ("lora_A", "lora_B"):
                module = getattr(layer, part)[name].float()
                module.requires_grad_(False)
                tensors[f"{path}.{part}.weight"] = module.weight
        self._tensors[name] = tensors
        self._names = (*self._names, name)
        for tensor in self._tensors[CURRENT].values():
            tensor.requires_grad_(True)

    @torch.no_grad()
    def _initialise(self) -> None:
        generator = torch.Generator().manual_seed(self.spec.seed)
        bound = {path: 1 / math.sqrt(tensor.shape[1]) for path, tensor in self._tensors[CURRENT].items()}
        for path, tensor in self._tensors[CURRENT].items():
            if ".lora_B." in path:
                tensor.zero_()
                continue
            start = torch.empty(tensor.shape)
            if self.spec.init == "gaussian":
                start.normal_(std=1 / self.spec.rank, generator=generator)
            else:
                start.uniform_(-bound[path], bound[path], generator=generator)
            tensor.copy_(start)

    def _switch(self, name: str) -> None:
        # peft's own set_adapter also toggles requires_grad, which would drop current's gradients.
        disabled, active = name == FROZEN, [name]
        for layer in self._layers.values():
            layer._disable_adapters = disabled
            if not disabled:
                layer._active_adapter = active
