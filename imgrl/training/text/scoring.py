"""Fills what an objective reads of each token, with as few forward passes as it asks for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from imgrl.flow.conventions import full_precision
from imgrl.objectives.text import MetaDistill
from imgrl.objectives.text.base import BASE_NEEDS, Need
from imgrl.objectives.text.chunked import Index, Reader
from imgrl.objectives.text.tokens import Want
from imgrl.training.text.copies import WeightCopy
from imgrl.training.text.heads import Outputs, Rows, plain_head, read_outputs

__all__ = ["distilled_fields", "live_fields", "statistics"]

_KLS: frozenset[Need] = frozenset({"forward_kl", "reverse_kl", "previous_kl"})
"""What is computed from whole rows of logits, and so is all that is compared with what is computed beside it."""


@torch.no_grad()
def statistics(
    model: nn.Module,
    rows: Rows,
    want: Collection[Want],
    *,
    temperature: float,
    batch: int,
    needs: Collection[Need] = (),
) -> dict[str, Tensor]:
    """``log_prob`` or ``entropy`` [n, t] without gradient, ``batch`` sequences at a time.

    Rounded as in :func:`live_fields` with the same ``needs``.
    """
    head, whole = plain_head(model), not _KLS.isdisjoint(needs)
    parts = [
        read_outputs(
            model,
            part,
            lambda own, part=part: own.statistics(part, want, temperature=temperature, whole=whole),
            head,
        )
        for part in (rows.select(slice(i, i + batch)) for i in range(0, len(rows.tokens), batch))
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in want}


def live_fields(
    model: nn.Module,
    rows: Rows,
    *,
    needs: Collection[Need],
    temperature: float = 1.0,
    base: WeightCopy | None = None,
    previous: WeightCopy | None = None,
) -> dict[str, Tensor]:
    """``log_prob`` and those of ``entropy, forward_kl, reverse_kl, previous_kl, anchor`` that are needed.

    Args:
        model: the policy as trained; its wrapper, if it has one.
        rows: what to score.
        needs: an objective's ``needs``; other fields are the caller's to fill.
        temperature: divides all logits.
        base: the anchor's weights.
        previous: those of the policy before the last update block.
    """
    own: nn.Module = getattr(model, "module", model)  # a wrapper must not see forwards without gradient
    head = plain_head(model)
    before = then = None
    whole = not _KLS.isdisjoint(needs)
    given: dict[str, Tensor] = {}
    # Anchors first: their weights are switched in and out again before the graph of the live pass exists.
    if base is not None and BASE_NEEDS & set(needs):
        with base.applied(own):
            wanted: list[Want] = ["log_prob"] if "anchor" in needs else []
            before, found = _said(own, rows, head, wanted, temperature, whole=whole)
        given = {"anchor": found["log_prob"]} if found else {}
    if previous is not None and "previous_kl" in needs:
        with previous.applied(own):
            then, _ = _said(own, rows, head, [], temperature)
    want: list[Want] = [name for name in get_args(Want) if name == "log_prob" or name in needs]

    def read(live: Outputs) -> dict[str, Tensor]:
        fields = live.statistics(rows, want, temperature=temperature, anchor=before, whole=whole)
        if then is not None:
            kl = live.statistics(rows, ["reverse_kl"], temperature=temperature, anchor=then)
            fields["previous_kl"] = kl["reverse_kl"]
        return fields

    return given | read_outputs(model, rows, read, head)


def distilled_fields(
    model: nn.Module,
    rows: Rows,
    *,
    objective: MetaDistill,
    teacher: nn.Module,
    generations: Sequence[WeightCopy],
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """``log_prob`` and ``target_kl`` against the mixture of the last generations, newest first, and the teacher.

    A mixture of distributions is no model's, so it is made of their logits, a chunk of positions at a time.
    """
    own: nn.Module = getattr(model, "module", model)
    head, before = plain_head(model), list[Reader]()
    for generation in generations:
        with generation.applied(own):
            before.append(_said(own, rows, head, [], temperature)[0])
    with torch.no_grad():
        taught, _ = _said(teacher, rows, plain_head(teacher), [], temperature)

    def target(index: Index) -> Tensor:
        said = [full_precision(reader(index)) / temperature for reader in before]
        base = full_precision(taught(index)) / temperature
        # Times the temperature, by which the statistics below divide what they compare.
        return objective.target(*said, base=base) * temperature

    def read(live: Outputs) -> dict[str, Tensor]:
        found = live.statistics(rows, ["log_prob", "forward_kl"], temperature=temperature, anchor=target)
        return {"log_prob": found["log_prob"], "target_kl": found["forward_kl"]}

    return read_outputs(model, rows, read, head)


def _said(
    model: nn.Module,
    rows: Rows,
    head: nn.Linear | None,
    want: list[Want],
    temperature: float,
    *,
    whole: bool = False,
) -> tuple[Reader, dict[str, Tensor]]:
    """What a model says of rows, to be read from later, and statistics of it; without gradient.

    Those are computed inside its forward pass, in the precision that the live policy's will have.
    """
    kept: list[Reader] = []

    def read(outputs: Outputs) -> dict[str, Tensor]:
        kept.append(outputs.detach().reader())
        if not want:
            return {"nothing": outputs.source[..., 0]}
        return outputs.statistics(rows, want, temperature=temperature, whole=whole)

    found = read_outputs(model, rows, read, head)
    return kept[0], {name: found[name] for name in want}
