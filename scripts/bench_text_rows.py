"""The rows of ``bench_text.py``: losses of language models, this package's and TRL's, on the same inputs.

To add a row, write a function of ``Inputs`` that returns a scalar loss and give it a ``Row`` in ``ROWS``; an objective
that needs no more than token statistics and stored log-probabilities only joins ``OBJECTIVES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imgrl.objectives.text import (
    ASFT,
    DFT,
    FSFT,
    SFT,
    SFTKL,
    TextBatch,
    head_statistics,
    reduce,
    token_statistics,
)
from imgrl.objectives.text.tokens import Want

STATISTICS: tuple[Want, ...] = ("entropy", "forward_kl", "reverse_kl")


@dataclass(frozen=True)
class Size:
    """Sequences, positions, vocabulary and, from hidden states, width."""

    n: int = 8
    t: int = 512
    v: int = 32_000
    h: int = 512


SMALL = Size(n=2, t=128, v=8_000, h=128)


class Inputs:
    """Made once in the process of a row, outside the measurement. Every position carries loss."""

    def __init__(self, size: Size, row: Row) -> None:
        torch.manual_seed(0)
        size = replace(size, v=size.v * row.vocabularies)
        anchored = row.anchored
        self.ids = torch.randint(size.v, (size.n, size.t))
        self.mask = torch.ones(size.n, size.t)
        self.leaves: list[Tensor]
        if row.source == "logits":
            self.logits = torch.randn(size.n, size.t, size.v).requires_grad_()
            self.anchor_logits = torch.randn(size.n, size.t, size.v) if anchored else None
            self.leaves = [self.logits]
        else:
            self.hidden = torch.randn(size.n, size.t, size.h).requires_grad_()
            self.weight = (torch.randn(size.v, size.h) / size.h**0.5).requires_grad_(not row.frozen)
            self.anchor_hidden = torch.randn(size.n, size.t, size.h) if anchored else None
            self.leaves = [self.hidden] if row.frozen else [self.hidden, self.weight]


def ours(objective: Any, source: str) -> Callable[[Inputs], Tensor]:
    """An objective's loss from logits or hidden states, by the package's own functions."""

    def loss(inputs: Inputs) -> Tensor:
        want: list[Want] = ["log_prob", *(name for name in STATISTICS if name in objective.needs)]
        if source == "logits":
            values = token_statistics(
                inputs.logits, inputs.ids, want=want, mask=inputs.mask, anchor_logits=inputs.anchor_logits
            )
        else:
            values = head_statistics(
                inputs.hidden,
                inputs.weight,
                inputs.ids,
                want=want,
                mask=inputs.mask,
                anchor_hidden=inputs.anchor_hidden,
                anchor_weight=inputs.weight.detach(),
            )
        fields: dict[str, Any] = {**values, "mask": inputs.mask}
        if "anchor" in objective.needs:  # stored log-probabilities: nothing to compute
            fields["anchor"] = torch.full_like(inputs.mask, -10.0)
        result = objective.loss(TextBatch(**fields)).loss
        return result.mean() if result.ndim == 1 else reduce(result, inputs.mask, how=objective.reduction)

    return loss


def cross_entropy(inputs: Inputs) -> Tensor:
    """Torch's cross-entropy on all logits: what TRL's SFT was before it fused the output layer."""
    return F.cross_entropy(inputs.logits.flatten(0, 1), inputs.ids.flatten())


def cross_entropy_of_product(inputs: Inputs) -> Tensor:
    """The same behind a plain output layer."""
    return F.cross_entropy((inputs.hidden @ inputs.weight.T).flatten(0, 1), inputs.ids.flatten())


def trl_from_logits(weight: Literal["none", "probability"]) -> Callable[[Inputs], Tensor]:
    """TRL's ``selective_log_softmax`` under its SFT or DFT loss."""

    def loss(inputs: Inputs) -> Tensor:
        from trl.trainer.utils import selective_log_softmax

        log_prob = selective_log_softmax(inputs.logits, inputs.ids)
        return weighted(log_prob, weight)

    return loss


def trl_fused(
    weight: Literal["none", "probability"], extras: tuple[str, ...] = ("entropy", "is_top1")
) -> Callable[[Inputs], Tensor]:
    """TRL's fused output layer; ``extras`` are what its SFT trainer has it compute for the log.

    Without Triton, as on a CPU, TRL runs it in plain torch operations on tiles of 4096 tokens by 32768 logits.
    """

    def loss(inputs: Inputs) -> Tensor:
        from trl.kernels import ChunkedLogProbFunction

        hidden = inputs.hidden.flatten(0, 1)
        log_prob, *_ = ChunkedLogProbFunction.apply(
            hidden, inputs.weight, None, inputs.ids.flatten(), 1.0, 32768, None, 1.0, extras
        )
        return weighted(log_prob, weight)

    return loss


def trl_divergence(inputs: Inputs) -> Tensor:
    """TRL's distillation trainer: forward KL from hidden states of both."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    anchor = inputs.anchor_hidden
    assert anchor is not None
    return _chunked_divergence_loss(
        inputs.hidden, anchor, inputs.weight, inputs.weight.detach(), inputs.mask, 0.0
    )[0]


def weighted(log_prob: Tensor, weight: str) -> Tensor:
    """TRL's two SFT losses."""
    loss = -log_prob if weight == "none" else -log_prob * log_prob.exp().detach()
    return loss.sum() / loss.numel()


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    source: Literal["logits", "hidden"]
    loss: Callable[[Inputs], Tensor]
    versus: str | None = None
    """The row its cost is divided by."""
    anchored: bool = False
    """Whether the anchor's logits or hidden states are made."""
    frozen: bool = False
    """Whether the output matrix is without gradient, as under an adapter that leaves it alone."""
    vocabularies: int = 1
    """How many times the size's vocabulary."""


OBJECTIVES = {
    "sft": SFT(),
    "dft": DFT(),
    "asft": ASFT(),
    "asft reverse": ASFT(kl_direction="reverse"),
    "sft_kl": SFTKL(),
    "f_sft": FSFT(),
}
#: What our rows are compared with; all others with TRL's SFT on the same inputs.
VERSUS = {"logits": {"dft": "trl dft"}, "hidden": {"dft": "trl dft"}}

ROWS: dict[str, Row] = {
    "logits: cross entropy": Row("logits", cross_entropy),
    "logits: trl sft": Row("logits", trl_from_logits("none"), "logits: cross entropy"),
    "logits: trl dft": Row("logits", trl_from_logits("probability"), "logits: trl sft"),
    "hidden: cross entropy": Row("hidden", cross_entropy_of_product, "hidden: trl sft"),
    "hidden: trl sft": Row("hidden", trl_fused("none")),
    "hidden: trl dft": Row("hidden", trl_fused("probability"), "hidden: trl sft"),
    "hidden: trl sft without its log": Row("hidden", trl_fused("none", ()), "hidden: trl sft"),
    "hidden: trl divergence": Row("hidden", trl_divergence, "hidden: trl sft", anchored=True),
}
ROWS |= {
    f"{source}: {name}": Row(
        source,
        ours(objective, source),
        f"{source}: {VERSUS[source].get(name, 'trl sft')}",
        anchored=bool({"forward_kl", "reverse_kl"} & objective.needs),
    )
    for source in ("logits", "hidden")
    for name, objective in OBJECTIVES.items()
}
FROZEN = {"frozen": 1, "frozen, 4 v": 4}
ROWS |= {
    f"hidden, {words}: {name}": Row(
        "hidden",
        loss,
        f"hidden, {words}: trl sft" if name == "sft" else None,
        frozen=True,
        vocabularies=times,
    )
    for words, times in FROZEN.items()
    for name, loss in (("trl sft", trl_fused("none")), ("sft", ours(SFT(), "hidden")))
}
