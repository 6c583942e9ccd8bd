"""Copies of the trained weights that stay behind, switched in place: the anchors of language models.

A copy holds the trainable tensors only. With a LoRA that is the adapter, and the copy taken before training, whose
adapter does nothing, is the frozen base; with full fine-tuning it is the whole model. How a copy moves is a rule of
:mod:`imgrl.anchor`, the same as for images. Where a model is sharded after its copies were taken, a copy is cut as the
model is when it first meets it; from then on each process holds a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from imgrl.anchor import blend
from imgrl.errors import CheckpointError
from imgrl.training.text.sharding import gather_anew, is_sharded, local, placed, trainable, whole

__all__ = ["WeightCopy"]


class WeightCopy:
    """Trainable tensors of a model as they were."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in trainable(model)}

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with these weights, in evaluation mode and without gradient; restored after, also on errors.

        Storage changes hands, nothing is copied where device and type agree. Else a copy moves to the model's device
        for good (DeepSpeed moves models late) and keeps its type. Parts of a sharded model trade contents with the
        copy's, since their storage is not ours to change. Use it before the forward pass whose gradient is wanted.
        """
        training = model.training
        model.eval()
        try:
            with self._traded(model) if is_sharded(model) else self._lent(model), torch.no_grad():
                yield
        finally:
            model.train(training)

    @contextmanager
    def _lent(self, model: nn.Module) -> Iterator[None]:
        live = [(parameter, parameter.data) for _, parameter in trainable(model)]
        try:
            for name, parameter in trainable(model):
                self.tensors[name] = self.tensors[name].to(parameter.device)
                parameter.data = self.tensors[name].to(parameter.dtype)
            yield
        finally:
            for parameter, data in live:
                parameter.data = data

    @contextmanager
    def _traded(self, model: nn.Module) -> Iterator[None]:
        """Exact both ways: the two are of one type."""
        pairs: list[tuple[Tensor, Tensor]] = []
        try:
            for name, parameter in trainable(model):
                self.tensors[name] = placed(self.tensors[name], parameter)
                pair = local(parameter), local(self.tensors[name])
                _trade(*pair)
                pairs.append(pair)
            yield
        finally:
            gather_anew(model)  # what the forward passes here gathered was the copy's
            for pair in pairs:
                _trade(*pair)

    def renew(self, source: nn.Module | WeightCopy) -> None:
        """Become what a model, or another copy, is now."""
        self.follow(source, 0.0)

    def follow(self, source: nn.Module | WeightCopy, decay: float) -> None:
        """:func:`imgrl.anchor.blend` towards a model or another copy; of a LoRA the factors are averaged."""
        tensors = source.tensors if isinstance(source, WeightCopy) else dict(trainable(source))
        self.tensors = {name: placed(own, tensors[name]) for name, own in self.tensors.items()}
        theirs = [placed(tensors[name].detach(), own) for name, own in self.tensors.items()]
        blend([local(own) for own in self.tensors.values()], [local(tensor) for tensor in theirs], decay)

    def state_dict(self, *, here: bool = True) -> dict[str, Tensor]:
        """The whole tensors, on the CPU; nothing where they are not wanted ``here``.

        Those of a sharded model are put together, for which every process must ask.
        """
        state: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            gathered = whole(tensor)
            if here:
                state[name] = gathered.cpu().contiguous()
        return state

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
            own = self.tensors[name]
            local(own).copy_(local(placed(tensor, own)))


@torch.no_grad()
def _trade(one: Tensor, other: Tensor) -> None:
    """Let two tensors have each other's contents."""
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)
