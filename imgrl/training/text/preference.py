"""TRL's DPO trainer with a loss of ours. Imports TRL at the top: import this module inside functions only."""

from __future__ import annotations

from typing import Any

import torch
from trl import DPOTrainer

from imgrl.training.text.anchored import AnchorFiles
from imgrl.training.text.heads import Rows
from imgrl.training.text.scoring import live_fields
from imgrl.training.text.steps import refuse_outputs

__all__ = ["PreferenceTrainer"]


class PreferenceTrainer(AnchorFiles, DPOTrainer):
    """Objectives on pairs of completions, the chosen one first; the anchor is the model before training."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ref_model = None  # TRL's second model is not needed: the anchor is switched in place

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss over the batch's pairs: TRL puts all chosen sequences before all rejected ones."""
        refuse_outputs(return_outputs)
        rows = Rows(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            tokens=inputs["input_ids"][:, 1:],
            mask=inputs["completion_mask"][:, 1:].bool(),
        )
        fields = live_fields(model, rows, needs=self.objective.needs, base=self.anchors.get("base"))
        pairs = torch.arange(len(rows.tokens) // 2, device=rows.tokens.device)
        _, out = self.objective_loss(
            mask=rows.mask.to(torch.float32),
            group=pairs.repeat(2),
            reward=torch.cat([torch.ones_like(pairs), torch.zeros_like(pairs)]).float(),
            step=self.state.global_step,
            **fields,
        )
        return out.loss.mean()
