"""Copies of the trained weights that stay behind, switched in place: the anchors of language models.

A copy holds the trainable tensors only. With a LoRA that is the adapter, and the copy taken before training, whose
adapter does nothing, is the frozen base; with full fine-tuning it is the whole model. How a copy moves is a rule of
:mod:`imgrl.anchor`, the same as for images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from imgrl.anchor import blend
from imgrl.errors import CheckpointError

__all__ = ["WeightCopy"]


class WeightCopy:
    """Trainable tensors of a model as they were."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in _trainable(model)}

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with these weights, in evaluation mode and without gradient; restored after, also on errors.

        Storage changes hands, nothing is copied where device and type agree. Else a copy moves to the model's device
        for good (DeepSpeed moves models late) and keeps its type. Use it before the forward pass whose gradient is
        wanted.
        """
        training = model.training
        live = [(parameter, parameter.data) for _, parameter in _trainable(model)]
        model.eval()
        try:
            for name, parameter in _trainable(model):
                self.tensors[name] = self.tensors[name].to(parameter.device)
                parameter.data = self.tensors[name].to(parameter.dtype)
            with torch.no_grad():
                yield
        finally:
            for parameter, data in live:
                parameter.data = data
            model.train(training)

    def renew(self, source: nn.Module | WeightCopy) -> None:
        """Become what a model, or another copy, is now."""
        self.follow(source, 0.0)

    def follow(self, source: nn.Module | WeightCopy, decay: float) -> None:
        """:func:`imgrl.anchor.blend` towards a model or another copy; of a LoRA the factors are averaged."""
        tensors = source.tensors if isinstance(source, WeightCopy) else dict(_trainable(source))
        blend(list(self.tensors.values()), [tensors[name].detach() for name in self.tensors], decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors, on the CPU."""
        return {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Become what was saved.

        Raises:
            CheckpointError: if names or shapes are those of another model.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if wanted != given:
            odd = sorted(wanted.items() ^ given.items())
            raise CheckpointError(
                f"A saved anchor does not fit this model: {len(odd)} tensors differ, such as {odd[0][0]}; "
                "resume with the recipe the run began with."
            )
        for name, tensor in state.items():
            self.tensors[name].copy_(tensor)


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
