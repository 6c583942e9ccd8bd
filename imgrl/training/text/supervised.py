"""TRL's SFT trainer with a loss of ours. Imports TRL at the top: import this module inside functions only."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from imgrl.objectives.text.base import reduce
from imgrl.training.text.anchored import AnchorFiles
from imgrl.training.text.heads import Rows
from imgrl.training.text.scoring import live_fields
from imgrl.training.text.steps import no_loss, refuse_outputs

__all__ = ["SupervisedTrainer"]


class SupervisedTrainer(AnchorFiles, SFTTrainer):
    """SFT, DFT, ASFT, SFT + KL and f-divergence SFT; the anchor is the model before training or follows it."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss on the batch's demonstrated tokens."""
        refuse_outputs(return_outputs)
        labels = inputs["labels"]
        tokens = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), -100)], 1)[:, :-1]
        rows = Rows(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            tokens=tokens,
            mask=tokens != -100,
        )
        score = partial(live_fields, model, needs=self.objective.needs, base=self.anchors.get("base"))
        kept = rows.mask.any(-1)
        if not bool(kept.any()):  # cut off before their completions began
            return no_loss(model, rows, score)
        rows = rows.select(kept)
        fields = score(rows)
        mask = rows.mask.to(torch.float32)
        batch, out = self.objective_loss(mask=mask, step=self.state.global_step, **fields)
        return self._scaled(out.loss, batch.mask, num_items_in_batch)

    def _scaled(self, loss: Tensor, mask: Tensor, total: Tensor | int | None) -> Tensor:
        """The mean over the global batch. ``total`` is its number of tokens; given it, nobody else averages."""
        how = self.objective.reduction
        own = loss.mean() if loss.ndim == 1 else reduce(loss, mask, how=how)
        if total is None:
            return own
        if loss.ndim == 2 and how == "token":
            shared = reduce(loss, mask, how=how, denominator=float(total))
            return (
                shared * self.accelerator.num_processes if self.args.average_tokens_across_devices else shared
            )
        return own / self.current_gradient_accumulation_steps
