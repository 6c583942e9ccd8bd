"""The rows of ``bench_text.py``: losses of language models, this package's and TRL's, on the same inputs.

To add a row, write a function of ``Inputs`` that returns a scalar loss and give it a ``Row`` in ``ROWS``; an objective
only joins ``OBJECTIVES``. Log-probabilities of other policies are stored numbers, advantages are those of one group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from bench_text_trl import (
    cross_entropy,
    cross_entropy_of_product,
    trl_divergence,
    trl_from_logits,
    trl_fused,
    trl_grpo,
)
from torch import Tensor

from imgrl.objectives.text import (
    ADPO,
    ASFT,
    DFT,
    DPO,
    FSFT,
    GRPO,
    KDRL,
    SFT,
    SFTKL,
    SPINE,
    TRRD,
    TTRL,
    ReMix,
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
        size = replace(size, v=int(size.v * row.vocabularies))
        anchored = row.anchored
        self.ids = torch.randint(size.v, (size.n, size.t))
        self.mask = torch.ones(size.n, size.t)
        self.advantage = torch.linspace(-1, 1, size.n)
        self.old = torch.full_like(self.mask, -10.0)
        self.leaves: list[Tensor]
        if row.source == "logits":
            self.logits = torch.randn(size.n, size.t, size.v).requires_grad_()
            self.anchor_logits = torch.randn(size.n, size.t, size.v) if anchored else None
            self.leaves = [self.logits]
        else:
            self.hidden = torch.randn(size.n, size.t, size.h).requires_grad_()
            # In place: a second matrix would be the peak of rows whose loss takes less than that.
            self.weight = torch.randn(size.v, size.h).div_(size.h**0.5).requires_grad_(not row.frozen)
            self.anchor_hidden = torch.randn(size.n, size.t, size.h) if anchored else None
            self.leaves = [self.hidden] if row.frozen else [self.hidden, self.weight]


def statistics(inputs: Inputs, source: str, want: list[Want]) -> dict[str, Tensor]:
    """This package's own, from logits or hidden states."""
    if source == "logits":
        return token_statistics(
            inputs.logits, inputs.ids, want=want, mask=inputs.mask, anchor_logits=inputs.anchor_logits
        )
    return head_statistics(
        inputs.hidden,
        inputs.weight,
        inputs.ids,
        want=want,
        mask=inputs.mask,
        anchor_hidden=inputs.anchor_hidden,
        anchor_weight=inputs.weight.detach(),
    )


def ours(objective: Any, source: str) -> Callable[[Inputs], Tensor]:
    """An objective's loss from logits or hidden states, by the package's own functions."""

    def loss(inputs: Inputs) -> Tensor:
        values = statistics(
            inputs, source, ["log_prob", *(name for name in STATISTICS if name in objective.needs)]
        )
        if "previous_kl" in objective.needs:  # another policy's logits, of the same cost
            values["previous_kl"] = statistics(inputs, source, ["reverse_kl"])["reverse_kl"]
        stored = {
            name: inputs.old for name in ("old", "current", "teacher", "anchor") if name in objective.needs
        }
        index = torch.arange(len(inputs.ids))
        batch = TextBatch(
            mask=inputs.mask,
            advantage=inputs.advantage,
            reward=index.remainder(2).float(),
            group=index // 2 if objective.kind == "preference" else torch.zeros_like(index),
            step=100,  # where ReMix's two anchors have equal shares
            **values,
            **stored,
        )
        result = objective.loss(batch).loss
        return result.mean() if result.ndim == 1 else reduce(result, inputs.mask, how=objective.reduction)

    return loss


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
    vocabularies: float = 1
    """How many times the size's vocabulary."""


OBJECTIVES = {
    "sft": SFT(),
    "dft": DFT(),
    "asft": ASFT(),
    "asft reverse": ASFT(kl_direction="reverse"),
    "sft_kl": SFTKL(),
    "f_sft": FSFT(),
    "dpo": DPO(),
    "grpo": GRPO(),
    "adpo": ADPO(),
    "trrd": TRRD(),
    "kdrl": KDRL(),
    "remix": ReMix(),
    "ttrl": TTRL(),
    "spine": SPINE(),
}
#: What our rows are compared with; all others with TRL's SFT on the same inputs.
VERSUS = {"dft": "trl dft"} | {
    name: "trl grpo" for name, objective in OBJECTIVES.items() if objective.kind == "online"
}

ROWS: dict[str, Row] = {
    "logits: cross entropy": Row("logits", cross_entropy),
    "logits: trl sft": Row("logits", trl_from_logits("none"), "logits: cross entropy"),
    "logits: trl dft": Row("logits", trl_from_logits("probability"), "logits: trl sft"),
    "logits: trl grpo": Row("logits", trl_grpo("logits"), "logits: trl sft"),
    "hidden: cross entropy": Row("hidden", cross_entropy_of_product, "hidden: trl sft"),
    "hidden: trl sft": Row("hidden", trl_fused("none")),
    "hidden: trl dft": Row("hidden", trl_fused("probability"), "hidden: trl sft"),
    "hidden: trl sft without its log": Row("hidden", trl_fused("none", ()), "hidden: trl sft"),
    "hidden: trl grpo": Row("hidden", trl_grpo("hidden", ("entropy",)), "hidden: trl sft"),
    "hidden: trl grpo without its log": Row("hidden", trl_grpo("hidden"), "hidden: trl grpo"),
    "hidden: trl divergence": Row("hidden", trl_divergence, "hidden: trl sft", anchored=True),
}
ROWS |= {
    f"{source}: {name}": Row(
        source,
        ours(objective, source),
        f"{source}: {VERSUS.get(name, 'trl sft')}",
        anchored=bool({"forward_kl", "reverse_kl"} & objective.needs),
    )
    for source in ("logits", "hidden")
    for name, objective in OBJECTIVES.items()
}
FROZEN = {"frozen, v / 4": 0.25, "frozen": 1, "frozen, 4 v": 4}
ROWS |= {
    f"hidden, {words}: {name}": Row(
        "hidden",
        loss,
        None if name.startswith("trl") else f"hidden, {words}: trl {name}",
        frozen=True,
        vocabularies=times,
    )
    for words, times in FROZEN.items()
    for name, loss in (
        ("trl sft", trl_fused("none")),
        ("sft", ours(SFT(), "hidden")),
        ("trl grpo", trl_grpo("hidden", ("entropy",))),
        ("grpo", ours(GRPO(), "hidden")),
    )
}
