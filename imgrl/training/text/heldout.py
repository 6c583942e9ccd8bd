"""Pass@1 on held-out problems: the same prompts and random numbers before, during and after."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from imgrl.data.texts import load_rows
from imgrl.errors import ConfigError, RewardError
from imgrl.recipe_text import TextEvaluation
from imgrl.rewards.base import Reward
from imgrl.rewards.calling import Failure
from imgrl.rewards.resolve import make
from imgrl.types import Prompt

__all__ = ["HeldOut"]


class HeldOut:
    """Held-out problems with their verifier."""

    def __init__(self, spec: TextEvaluation, tokenizer: Any, *, max_tokens: int) -> None:
        self.spec, self.tokenizer, self.max_tokens = spec, tokenizer, max_tokens
        if spec.temperature == 0 and spec.samples > 1:
            raise ConfigError(
                f"evaluation.temperature=0 gives the same completion {spec.samples} times: set evaluation.samples=1"
            )
        self.verifier = Reward(spec.verifier, make(spec.verifier, name=spec.verifier))
        needs = {"prompt", *self.verifier.required}
        self.rows = load_rows(spec.prompts, count=spec.limit, needs=needs)
        self.columns = self.verifier.passed_columns(set(self.rows[0]) - {"prompt"})

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        """``pass@1``, ``pass@k``, mean length, and Pass@1 by the column ``task`` where there is one."""
        training = model.training
        model.eval()
        try:
            completions, lengths = self._generate(model)
        finally:
            model.train(training)
        n = self.spec.samples
        prompts = [
            Prompt(id=i, text=row["prompt"], columns={key: row[key] for key in self.columns})
            for i, row in enumerate(self.rows)
            for _ in range(n)
        ]
        scores = self.verifier(completions, prompts, self.columns)  # type: ignore[arg-type]
        if isinstance(scores, Failure) or bool(scores.isnan().any()):
            why = scores if isinstance(scores, Failure) else "it does not apply to some of the problems"
            raise RewardError(
                f"The verifier {self.spec.verifier!r} cannot judge the held-out problems: {why}."
            )
        right = (scores == 1).float().view(-1, n)
        out = {"pass@1": float(right.mean()), "tokens": sum(lengths) / len(lengths)}
        if n > 1:
            out[f"pass@{n}"] = float(right.amax(1).mean())
        tasks: dict[str, list[float]] = defaultdict(list)
        for row, own in zip(self.rows, right.mean(1).tolist(), strict=True):
            if "task" in row:
                tasks[row["task"]].append(own)
        return out | {f"pass@1/{task}": sum(own) / len(own) for task, own in tasks.items()}

    def _generate(self, model: Any) -> tuple[list[str], list[int]]:
        """Completions and their lengths in tokens, problem by problem; training's random numbers are left alone."""
        texts = [row["prompt"] for row in self.rows for _ in range(self.spec.samples)]
        device = next(model.parameters()).device
        completions: list[str] = []
        lengths: list[int] = []
        sampling: dict[str, Any] = {"do_sample": False}
        if self.spec.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.spec.temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.spec.seed)
            for start in range(0, len(texts), self.spec.batch):
                part = self.tokenizer(  # with the special tokens it adds by itself, as TRL tokenises prompts
                    texts[start : start + self.spec.batch],
                    return_tensors="pt",
                    padding=True,
                    padding_side="left",
                ).to(device)
                made = model.generate(
                    input_ids=part["input_ids"],
                    attention_mask=part["attention_mask"],
                    max_new_tokens=self.max_tokens,
                    pad_token_id=self.tokenizer.pad_token_id,
                    eos_token_id=self.tokenizer.eos_token_id,
                    **sampling,
                )[:, part["input_ids"].shape[1] :]
                completions += self.tokenizer.batch_decode(made, skip_special_tokens=True)
                lengths += (made != self.tokenizer.pad_token_id).sum(1).tolist()
        return completions, lengths
