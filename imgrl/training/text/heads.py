"""Statistics of each token where a model's output layer stands, so that no logits [n, t, v] are ever made.

While a forward pass runs, the output layer is asked for statistics of its input instead of logits; the model returns
them in the logits' place. Taking the hidden states out and multiplying them outside would be simpler and wrong: the
output matrix would then be no part of the forward pass of ``DistributedDataParallel``, which reduces gradients of
what its forward pass used, and would miss autocast. As it is, an adapter, checkpointed layers and the wrapper never
notice. Where the logits are not exactly the output layer's (capped, scaled, cut), where the layer is not a plain one
(an adapter on it, quantised), where weights are sharded or the wrapper is another, logits are made as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imgrl.objectives.text.chunked import Reader, head_in_use, pick
from imgrl.objectives.text.tokens import Want, head_statistics, token_statistics
from imgrl.training.text.sharding import is_sharded

__all__ = ["Outputs", "Rows", "plain_head", "read_outputs", "rows_of"]

_LINEAR: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model returns what its output layer gives; found out once."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Sequences and the tokens to learn from; the last ``t`` positions of each sequence are scored."""

    input_ids: Tensor
    """[n, length]"""
    attention_mask: Tensor
    """[n, length]"""
    tokens: Tensor
    """[n, t]: the tokens that the scored positions predict; anything where the mask is 0."""
    mask: Tensor
    """[n, t]: 1 where a token carries loss."""

    def select(self, rows: Tensor | slice) -> Rows:
        """Some of the sequences."""
        return Rows(
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            tokens=self.tokens[rows],
            mask=self.mask[rows],
        )


def rows_of(output: Mapping[str, Any]) -> Rows:
    """Prompts and completions of TRL's rollout as one sequence each; the completion is scored."""
    mask = output["completion_mask"]
    if "tool_mask" in output:
        mask = mask * output["tool_mask"]
    return Rows(
        input_ids=torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
        attention_mask=torch.cat([output["prompt_mask"], output["completion_mask"]], 1),
        tokens=output["completion_ids"],
        mask=mask.bool(),
    )


@dataclass(frozen=True)
class Outputs:
    """What a model says at the positions of ``Rows`` and, last, at one more that predicts nothing."""

    source: Tensor
    """[n, t + 1, v] logits, or [n, t + 1, h] hidden states where there is a ``weight``."""
    weight: Tensor | None = None
    """[v, h]: the output matrix."""
    bias: Tensor | None = None
    """[v]"""

    def detach(self) -> Outputs:
        """The same without gradient; the storage stays, also if the model's parameters are given another."""
        parts = (self.source, self.weight, self.bias)
        return Outputs(*(None if part is None else part.detach() for part in parts))  # type: ignore[arg-type]

    def reader(self) -> Reader:
        """Gives logits [c, v] at the positions of a chunk, in the precision of here and now."""
        head, bias = (None, None) if self.weight is None else head_in_use(self.weight, self.bias)
        return partial(pick, self.source, head, bias)

    def statistics(
        self,
        rows: Rows,
        want: Collection[Want],
        *,
        temperature: float,
        anchor: Reader | None = None,
        whole: bool = False,
    ) -> dict[str, Tensor]:
        """``head_statistics``, each [n, t + 1]: cutting the last position off logits would cost a copy of them."""
        ids = nn.functional.pad(rows.tokens, (0, 1))
        mask = nn.functional.pad(rows.mask.to(torch.float32), (0, 1))
        common: dict[str, Any] = {"want": want, "mask": mask, "temperature": temperature, "anchor_at": anchor}
        if self.weight is None:
            return token_statistics(self.source, ids, **common)
        return head_statistics(self.source, self.weight, ids, bias=self.bias, whole=whole, **common)


def read_outputs(
    model: nn.Module,
    rows: Rows,
    read: Callable[[Outputs], Mapping[str, Tensor]],
    head: nn.Linear | None,
) -> dict[str, Tensor]:
    """One forward pass; what ``read`` gives of its outputs, without the last position: each [n, t].

    Args:
        model: the policy, or the wrapper whose forward pass it must be.
        rows: what to run it on.
        read: tensors [n, t + 1] by name, at least one, float32 or better; all of one kind.
        head: ``plain_head`` of the model; None makes logits.
    """
    if head is None:
        values = read(Outputs(_forward(model, rows)))
    else:
        names: list[str] = []

        def instead(hidden: Tensor) -> Tensor:
            found = read(Outputs(hidden, head.weight, head.bias))
            names.extend(found)
            return torch.stack(list(found.values()), -1)

        with _answering(head, instead):
            packed = _forward(model, rows)
        values = dict(zip(names, packed.unbind(-1), strict=True))
    return {name: value[:, :-1] for name, value in values.items()}


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The output layer, if the model's logits are exactly its product with the last hidden states; else None."""
    own: Any = model
    if isinstance(model, DistributedDataParallel):
        own = model.module
    elif hasattr(model, "module"):  # DeepSpeed, DataParallel: they move or copy the output matrix
        return None
    elif is_sharded(model):  # whole while the forward pass runs alone, in memory that is used again
        return None
    head = own.get_output_embeddings() if hasattr(own, "get_output_embeddings") else None
    # Subclasses multiply in ways of their own; a matrix that is not there as [v, h] is sharded or elsewhere.
    if type(head) is not nn.Linear or "forward" in vars(head) or type(head.weight) is not nn.Parameter:
        return None
    if head.weight.shape != (head.out_features, head.in_features):
        return None
    if own not in _LINEAR:
        _LINEAR[own] = _returns_it_unchanged(own, head)
    return head if _LINEAR[own] else None


@torch.no_grad()
def _returns_it_unchanged(model: nn.Module, head: nn.Linear) -> bool:
    """Whether what the output layer gives is what the model returns, and for the positions asked for alone.

    Tried out with numbers that no cap, scale, offset or cut would leave as they are: families keep those under a dozen
    names in their configurations.
    """
    given = torch.linspace(-1e3, 1e3, head.out_features, device=head.weight.device)
    seen: list[tuple[int, ...]] = []

    def instead(hidden: Tensor) -> Tensor:
        seen.append(tuple(hidden.shape))
        return given.expand(*hidden.shape[:-1], -1)

    training = model.training
    model.eval()  # no dropout: training's random numbers are left alone
    try:
        with _answering(head, instead):
            ids = torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)
            out: Any = model(input_ids=ids, logits_to_keep=1, use_cache=False)
    finally:
        model.train(training)
    return seen == [(1, 1, head.in_features)] and torch.equal(out.logits, given.expand(1, 1, -1))


@contextmanager
def _answering(head: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The output layer gives what ``forward`` says of its input."""
    head.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward  # the class's again


def _forward(model: nn.Module, rows: Rows) -> Tensor:
    out: Any = model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        logits_to_keep=rows.tokens.shape[1] + 1,
        use_cache=False,
    )
    return out.logits
