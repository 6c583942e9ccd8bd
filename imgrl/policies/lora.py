"""LoRA adapters of one network as named weights, switched in place.

PiSSA (2404.02948) starts the factors at the leading part of each matrix, B0 A0, and trains W0 - B0 A0 + B A. Here W0
stays as it is and the factors as they started are a second adapter, taken away again: the frozen network is the stock
one to the bit, also in half precision, where a residual would have to be rounded, and every trained network is W0 plus
a LoRA of twice the rank, which is what gets exported.

With a mask the update is M * (s B A), see :mod:`imgrl.policies.masked_lora`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imgrl.analysis.masks import MaskKind, training_masks
from imgrl.errors import ConfigError
from imgrl.policies import masked_lora
from imgrl.policies.adapters import CURRENT, FROZEN, NamedWeights

__all__ = ["INITIAL", "JOINT_ATTENTION", "LoraSpec", "LoraWeights", "target_modules"]

INITIAL = "initial"
"""PiSSA's factors as they started."""

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
    init: Literal["gaussian", "kaiming", "pissa"] = "gaussian"
    """How A starts: normal with deviation 1/rank, or Kaiming-uniform; B starts at zero, which changes nothing.
    ``pissa`` starts both at the leading part of the weights, which is subtracted, so that it changes nothing either."""
    seed: int = 0
    """Seed of A, so that every process starts equal."""

    def __post_init__(self) -> None:
        """Refuse sizes and names that cannot work."""
        if self.rank < 1 or not self.alpha > 0:
            raise ConfigError(
                f"LoRA needs rank >= 1 and alpha > 0, got rank {self.rank} and alpha {self.alpha}."
            )
        if self.init not in ("gaussian", "kaiming", "pissa"):
            raise ConfigError(f"LoRA init must be 'gaussian', 'kaiming' or 'pissa', got '{self.init}'.")
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
        self,
        network: nn.Module,
        spec: LoraSpec,
        paths: Sequence[str],
        names: Sequence[str] = (),
        *,
        mask: MaskKind | None = None,
        mask_seed: int = 0,
    ) -> None:
        from peft.tuners.lora import LoraLayer

        network.requires_grad_(False)
        self.spec, self.mask = spec, mask
        self._network: Any = network
        self._paths = list(paths)
        self._names: tuple[str, ...] = ()
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._strength: dict[str, float] = {}
        self._inject(CURRENT)
        self._layers: dict[str, Any] = {n: m for n, m in network.named_modules() if isinstance(m, LoraLayer)}
        if mask is not None:
            masks = training_masks(self.stored().values(), mask, seed=mask_seed)
            for layer in self._layers.values():
                masked_lora.confine(layer, masks.get(layer.get_base_layer().weight))
        self._register(CURRENT)
        if spec.init == "pissa":
            self._take_principal()
            self.add(INITIAL)
        else:
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
        """``current``, the copies made so far, and ``frozen``; with PiSSA ``initial``, in use equal to it."""
        return (*self._names, FROZEN)

    @property
    def lasting(self) -> tuple[str, ...]:
        """PiSSA's ``initial``: another machine's decomposition may choose other directions among equals."""
        return (INITIAL,) if INITIAL in self._names else ()

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
        """Overwrite ``target`` with ``source``; from ``frozen``, the update becomes zero (B = 0, or as it started)."""
        if source != FROZEN or self.lasting:
            super().copy(INITIAL if source == FROZEN else source, target)
            return
        if target != CURRENT:
            self._require_copy(target)
        with torch.no_grad():
            for path, tensor in self._tensors[target].items():
                if ".lora_B." in path:
                    tensor.zero_()

    def scale(self, name: str, strength: float) -> None:
        """Scale what a set of weights changes in every layer, until it is loaded again; B A by scaling B."""
        if self.lasting:  # no factors of this rank are a multiple of B A - B0 A0
            self._strength[name] = strength * self._strength.get(name, 1.0)
            self._switch(self._active)
            return
        state = self.state_dict(name)
        self.load_state_dict(name, {k: t * strength if ".lora_B." in k else t for k, t in state.items()})

    def load_state_dict(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Overwrite ``name`` with what :meth:`state_dict` gave, at full strength."""
        super().load_state_dict(name, state)
        if self._strength.pop(name, None) is not None:
            self._switch(self._active)

    def stored(self) -> dict[str, Tensor]:
        """The frozen matrices under the adapters by layer path, [out, in]."""
        return {path: layer.get_base_layer().weight for path, layer in self._layers.items()}

    def factors(self, name: str) -> dict[str, Tensor]:
        """Factors of the whole change that ``name`` makes to the stock weights, before :attr:`scaling`.

        As :meth:`tensors` names them; with PiSSA of twice the rank, B A - B0 A0 = [B, -B0] [A; A0].
        """
        own = self.state_dict(name)
        if not self.lasting or not own:
            return own
        start, strength = self.state_dict(INITIAL), self._strength.get(name, 1.0)
        return {
            path: strength * torch.cat([t, -start[path]], 1)
            if ".lora_B." in path
            else torch.cat([t, start[path]])
            for path, t in own.items()
        }

    @torch.no_grad()
    def changed(self, name: str, path: str) -> Tensor:
        """A layer's stored matrix with the change that ``name`` makes to it, [out, in], float32."""
        layer = self._layers[path]
        with self.use(name):
            deltas = [masked_lora.change(layer, own) for own in self._applied(name)]
            return sum(deltas, layer.get_base_layer().weight.float())

    def merged(self, name: str) -> dict[str, Tensor]:
        """The stock network's state with the change that ``name`` makes to it."""
        with self.use(name):
            return dict(masked_lora.merged_state(self._network, self._applied(name)))

    def _applied(self, name: str) -> list[str]:
        """Peft's adapters that make up the weights ``name``."""
        return [] if name in (FROZEN, INITIAL) else [name, *self.lasting]

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
            if masked_lora.is_confined(layer):
                masked_lora.confine(layer, None, name)
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

    @torch.no_grad()
    def _take_principal(self) -> None:
        """A and B of ``current`` from each layer's leading singular directions, half of a singular value in each."""
        tensors, rank = self._tensors[CURRENT], self.spec.rank
        for path, layer in self._layers.items():
            weight = layer.get_base_layer().weight
            if rank > min(weight.shape):
                raise ConfigError(
                    f"LoRA init 'pissa' takes as many directions as the rank, {rank}, but {path} has only "
                    f"{min(weight.shape)}: lower the rank, or choose 'gaussian'."
                )
            left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
            root = (values[:rank] / self.scaling).sqrt()
            tensors[f"{path}.lora_A.weight"].copy_(root[:, None] * right[:rank])
            tensors[f"{path}.lora_B.weight"].copy_(left[:, :rank] * root)

    def _switch(self, name: str) -> None:
        # peft's own set_adapter also toggles requires_grad, which would drop current's gradients.
        active = self._applied(name)
        for layer in self._layers.values():
            layer._disable_adapters = not active
            if active:
                layer._active_adapter = active
                if self.lasting:
                    scaling = self.scaling * self._strength.get(name, 1.0)
                    layer.scaling |= {name: scaling, INITIAL: -scaling}
