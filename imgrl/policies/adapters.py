"""Named weights: several versions of one network that share its frozen parameters.

``current`` is trained; copies such as ``old``, ``sampling`` or ``ema`` stay behind it; ``frozen`` is the
pretrained network. One mechanism, ``with weights.use(name):``, replaces separate reference, EMA and
old-policy models.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from imgrl.anchor import blend
from imgrl.errors import ModelError

__all__ = ["CURRENT", "FROZEN", "FixedWeights", "FullWeights", "NamedWeights"]

CURRENT = "current"
FROZEN = "frozen"


class NamedWeights(ABC):
    """Versions of one network's trainable tensors, addressed by name.

    ``current`` always exists and is the only one with gradients. Outside every ``use`` block the network *is*
    ``current``; run ``backward`` there, because gradient checkpointing recomputes with the weights in use.
    """

    _active: str = CURRENT

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Every name that :meth:`use` accepts."""

    @property
    def lasting(self) -> tuple[str, ...]:
        """Names that every checkpoint must hold beside ``current`` and its copies."""
        return ()

    @property
    def active(self) -> str:
        """The name in use now."""
        return self._active

    @abstractmethod
    def add(self, name: str) -> None:
        """Create the copy ``name`` as an exact copy of ``current``; nothing happens if it exists."""

    @abstractmethod
    def tensors(self, name: str = CURRENT) -> dict[str, Tensor]:
        """The tensors behind ``name`` by parameter path (shared memory, not copies)."""

    @abstractmethod
    def _switch(self, name: str) -> None:
        """Put ``name`` in place without a check."""

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Run the block with the weights ``name``; every name but ``current`` runs without gradients.

        Raises:
            ModelError: the name is unknown.
        """
        self._require(name)
        previous = self._active
        self._activate(name)
        try:
            with contextlib.nullcontext() if name == CURRENT else torch.no_grad():
                yield
        finally:
            self._activate(previous)

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, those of ``current``."""
        return [tensor for tensor in self.tensors(CURRENT).values() if isinstance(tensor, nn.Parameter)]

    def blend(self, name: str, decay: float) -> None:
        """Move the copy: :func:`imgrl.anchor.blend` towards ``current``, in place.

        For LoRA the factors are averaged, not their product, as in the published methods.
        """
        self._require_copy(name)
        blend(list(self.tensors(name).values()), list(self.tensors(CURRENT).values()), decay)

    @torch.no_grad()
    def copy(self, source: str, target: str) -> None:
        """Overwrite ``target`` with ``source``, tensor by tensor."""
        self._require(source)
        if target != CURRENT:
            self._require_copy(target)
        if source != target:
            blend(list(self.tensors(target).values()), list(self.tensors(source).values()), 0.0)

    def state_dict(self, name: str = CURRENT) -> dict[str, Tensor]:
        """The tensors of ``name`` for a checkpoint: detached, sharing memory with the live ones."""
        self._require(name)
        return {path: tensor.detach() for path, tensor in self.tensors(name).items()}

    @torch.no_grad()
    def load_state_dict(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Overwrite ``name`` with what :meth:`state_dict` gave.

        Raises:
            ModelError: the tensors do not match in name or shape (for example a LoRA of another rank).
        """
        self._require(name)
        own = self.tensors(name)
        if own.keys() != state.keys():
            missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise ModelError(
                f"The weights to load do not fit '{name}': {len(missing)} tensors are missing (first: "
                f"{missing[0] if missing else '-'}) and {len(extra)} are not known here (first: "
                f"{extra[0] if extra else '-'}); use the training mode and LoRA targets they were saved with."
            )
        wrong = [path for path, tensor in own.items() if tensor.shape != state[path].shape]
        if wrong:
            path = wrong[0]
            raise ModelError(
                f"The weights to load do not fit '{name}': {path} has shape {list(state[path].shape)} in "
                f"the file and {list(own[path].shape)} here; use the base model and LoRA rank of the file."
            )
        for path, tensor in own.items():
            tensor.copy_(state[path])

    def _activate(self, name: str) -> None:
        if name != self._active:
            self._switch(name)
            self._active = name

    def _require(self, name: str) -> None:
        if name not in self.names:
            raise ModelError(
                f"There are no weights named '{name}': this policy holds {', '.join(self.names)}; "
                f"create a copy with weights.add('{name}')."
            )

    def _require_copy(self, name: str) -> None:
        self._require(name)
        if name in (CURRENT, FROZEN):
            raise ModelError(f"'{name}' cannot be overwritten here: only copies such as 'old' can.")


class FullWeights(NamedWeights):
    """Full fine-tuning: every parameter trains, and each name owns a whole set of tensors, swapped in.

    Each copy, ``frozen`` included, costs the memory of the network: name only those that are needed.
    """

    def __init__(self, network: nn.Module, names: Sequence[str] = ()) -> None:
        self._parameters = dict(network.named_parameters())
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._sets: dict[str, dict[str, Tensor]] = {}
        self._trained: dict[str, Tensor] = {}  # where current's memory is kept while a copy is in place
        for name in names:
            self.add(name)

    @property
    def names(self) -> tuple[str, ...]:
        """``current`` and the copies made so far."""
        return (CURRENT, *self._sets)

    def add(self, name: str) -> None:
        """Copy every parameter of ``current`` as it is now; add ``frozen`` before the first update."""
        if name not in self.names:
            self._sets[name] = {path: t.detach().clone() for path, t in self.tensors(CURRENT).items()}

    def tensors(self, name: str = CURRENT) -> dict[str, Tensor]:
        """The tensors behind ``name`` by parameter path (shared memory, not copies)."""
        if name == CURRENT:
            return dict(self._trained or self._parameters)
        return self._sets[name]

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter of the network."""
        return list(self._parameters.values())

    def _switch(self, name: str) -> None:
        if self._active == CURRENT:
            self._trained = {path: parameter.data for path, parameter in self._parameters.items()}
        for path, tensor in (self._trained if name == CURRENT else self._sets[name]).items():
            self._parameters[path].data = tensor
        if name == CURRENT:
            self._trained = {}


class FixedWeights(NamedWeights):
    """A network that only samples: every usual name is the pretrained network itself, without gradients."""

    def __init__(self, network: nn.Module) -> None:
        network.requires_grad_(False)

    @property
    def names(self) -> tuple[str, ...]:
        """The usual names, all of them the same weights."""
        return (CURRENT, "old", "sampling", "ema", FROZEN)

    def add(self, name: str) -> None:
        """Nothing to copy: the weights never change."""
        self._require(name)

    def tensors(self, name: str = CURRENT) -> dict[str, Tensor]:
        """No tensor is trained."""
        self._require(name)
        return {}

    def _switch(self, name: str) -> None:
        del name
