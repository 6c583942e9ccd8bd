"""Weights of which each process holds a part, as torch's ``fully_shard`` (FSDP2) leaves them.

Between forward passes a parameter is then a ``DTensor`` whose local part lies in memory that the sharding owns:
parts are written in place, never given another storage. A forward pass gathers the parts, and the last layers keep
the whole until ``gather_anew`` or a backward pass, so that what is written to parts before is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["gather_anew", "is_sharded", "local", "placed", "trainable", "whole"]


def is_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to a model, not only to parts of it."""
    return isinstance(model, FSDPModule)


def gather_anew(model: nn.Module) -> None:
    """Forget gathered weights: the parameters are parts again, and the next forward pass gathers what these hold."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What trains, by the names that it had before layers were wrapped to be checkpointed; parts where sharded."""
    if is_sharded(model):
        gather_anew(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name.replace("_checkpoint_wrapped_module.", ""), parameter


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing its memory; of a tensor that is not sharded, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Of a sharded one every process must ask for it, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor cut as another is and beside it, if that one is sharded; else as it is.

    A whole one is the first process's, of which the others receive their parts: every process must ask.
    """
    if not isinstance(like, DTensor):
        return tensor
    if not isinstance(tensor, DTensor):
        tensor = distribute_tensor(tensor.to(like.dtype), like.device_mesh, like.placements)
    return tensor.to(like.device)
