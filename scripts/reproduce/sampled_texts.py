"""Texts that a language model writes, and what models say of them: used by the reproductions on tiny-lm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Texts"]

LONGEST = 56  # tokens


class Texts:
    """Sampled completions: ids [n, t], the positions of completion tokens, and their texts."""

    def __init__(self, model: Any, tokenizer: Any, prompts: list[str], *, each: int = 1) -> None:
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        start = inputs.input_ids.shape[1]
        with torch.no_grad():
            self.ids = model.generate(
                **inputs,
                max_new_tokens=LONGEST,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                num_return_sequences=each,
                pad_token_id=tokenizer.pad_token_id,
            )
        answer = self.ids[:, start:]
        ends = (answer == tokenizer.eos_token_id).long()
        self.mask = (ends.cumsum(1) - ends == 0).float()
        given = inputs.attention_mask.repeat_interleave(each, 0)
        self.attention = torch.cat([given, self.mask.long()], 1)
        self.start, self.answer = start, answer
        self.texts: list[str] = tokenizer.batch_decode(answer, skip_special_tokens=True)

    def logits(self, model: Any, rows: Tensor) -> Tensor:
        """Logits [n, t, v] that predict the completion tokens of some rows."""
        attention = self.attention[rows]
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        out = model(input_ids=self.ids[rows], attention_mask=attention, position_ids=positions)
        return out.logits[:, self.start - 1 : -1].float()
