"""Pass@1 on held-out problems: the same prompts and random numbers before, during and after."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from imgrl.data.texts import load_rows
from imgrl.errors import ConfigError, RewardError
from imgrl.recipe_text import TextEvaluation
from imgrl.rewards import RewardSpec
from imgrl.rewards.base import Reward
from imgrl.rewards.calling import Failure
from imgrl.training.text.copies import WeightCopy
from imgrl.training.text.heads import Rows
from imgrl.training.text.reading import as_texts, require_room
from imgrl.training.text.rewarding import judge, reward_of
from imgrl.training.text.scoring import live_fields
from imgrl.types import Prompt

__all__ = ["HeldOut", "problems"]


class HeldOut:
    """Held-out problems with their verifier."""

    def __init__(
        self,
        spec: TextEvaluation,
        tokenizer: Any,
        *,
        max_tokens: int,
        found: tuple[Reward, list[dict[str, Any]]] | None = None,
    ) -> None:
        """``found`` is what ``problems`` gave, if it was asked before."""
        self.spec, self.tokenizer, self.max_tokens = spec, tokenizer, max_tokens
        self.verifier, self.rows = problems(spec) if found is None else found
        self.columns = self.verifier.passed_columns(set(self.rows[0]) - {"prompt"})
        self.texts, self.templated = as_texts([row["prompt"] for row in self.rows], tokenizer, spec.prompts)
        self.base: WeightCopy | None = None
        """The model before training; with it the KL is measured."""

    def require_room(self, model: Any) -> None:
        """Refuse problems that leave the model no room for a completion."""
        require_room(
            [row["prompt"] for row in self.rows],
            self.tokenizer,
            model,
            more=self.max_tokens,
            key="generation.max_tokens",
            source=self.spec.prompts,
        )

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        """``pass@1``, ``pass@k``, mean length, Pass@1 by the column ``task`` where there is one, and ``kl_to_base``.

        The last is KL(model || base), exact over the vocabulary at temperature 1, nats, its mean over the tokens of
        the completions.
        """
        training = model.training
        model.eval()
        try:
            completions, lengths, kl = self._generate(model)
        finally:
            model.train(training)
        n = self.spec.samples
        prompts = [
            Prompt(id=i, text=row["prompt"], columns={key: row[key] for key in self.columns})
            for i, row in enumerate(self.rows)
            for _ in range(n)
        ]
        right = (self._judged(completions, prompts) == 1).float().view(-1, n)
        out = {"pass@1": float(right.mean()), "tokens": sum(lengths) / len(lengths)}
        if n > 1:
            out[f"pass@{n}"] = float(right.amax(1).mean())
        if kl is not None:
            out["kl_to_base"] = kl
        tasks: dict[str, list[float]] = defaultdict(list)
        for row, own in zip(self.rows, right.mean(1).tolist(), strict=True):
            if "task" in row:
                tasks[row["task"]].append(own)
        return out | {f"pass@1/{task}": sum(own) / len(own) for task, own in tasks.items()}

    def _judged(self, completions: list[str], prompts: list[Prompt]) -> Tensor:
        scores: list[Tensor] = []
        for answer in judge(self.verifier, completions, prompts, self.columns, size=self.spec.samples):
            if isinstance(answer, Failure) or bool(answer.isnan().any()):
                why = answer if isinstance(answer, Failure) else "it does not apply to some of the problems"
                raise RewardError(
                    f"The verifier {self.verifier.name!r} cannot judge the held-out problems: {why}."
                )
            scores.append(answer)
        return torch.cat(scores)

    def _generate(self, model: Any) -> tuple[list[str], list[int], float | None]:
        """Completions, their lengths in tokens and the KL; training's random numbers are left alone."""
        texts = [text for text in self.texts for _ in range(self.spec.samples)]
        device = next(model.parameters()).device
        completions: list[str] = []
        lengths: list[int] = []
        kl: list[Tensor] = []
        sampling: dict[str, Any] = {"do_sample": False}
        if self.spec.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.spec.temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.spec.seed)
            for start in range(0, len(texts), self.spec.batch):
                part = self.tokenizer(  # as TRL tokenises prompts: only a template brings its own special tokens
                    texts[start : start + self.spec.batch],
                    return_tensors="pt",
                    padding=True,
                    padding_side="left",
                    add_special_tokens=not self.templated,
                ).to(device)
                made = model.generate(
                    input_ids=part["input_ids"],
                    attention_mask=part["attention_mask"],
                    max_new_tokens=self.max_tokens,
                    pad_token_id=self.tokenizer.pad_token_id,
                    eos_token_id=self.tokenizer.eos_token_id,
                    **sampling,
                )[:, part["input_ids"].shape[1] :]
                if self.base is not None:
                    kl.append(self._kl(model, part, made, self.base))
                completions += self.tokenizer.batch_decode(made, skip_special_tokens=True)
                lengths += (made != self.tokenizer.pad_token_id).sum(1).tolist()
        return completions, lengths, float(torch.cat(kl).mean()) if kl else None

    def _kl(self, model: Any, prompts: Mapping[str, Tensor], made: Tensor, base: WeightCopy) -> Tensor:
        """KL(model || base) at every token up to each completion's end, which counts, in one dimension."""
        ends = (made == self.tokenizer.eos_token_id).long()
        mask = ends.cumsum(1) - ends == 0
        rows = Rows(
            input_ids=torch.cat([prompts["input_ids"], made], 1),
            attention_mask=torch.cat([prompts["attention_mask"], mask.long()], 1),
            tokens=made,
            mask=mask,
        )
        return live_fields(model, rows, needs=["reverse_kl"], base=base)["reverse_kl"][mask]


def _verifier(given: str | RewardSpec) -> Reward:
    spec = RewardSpec(use=given) if isinstance(given, str) else given
    if spec != replace(spec, weight=1.0, heldout_only=False, batch=None):
        raise ConfigError(
            "evaluation.verifier takes use, args, timeout, retries and backoff, since it alone judges the held-out "
            "problems; leave weight, heldout_only and batch out"
        )
    return reward_of(spec.use if isinstance(spec.use, str) else "verifier", spec)


def problems(spec: TextEvaluation) -> tuple[Reward, list[dict[str, Any]]]:
    """The verifier and the held-out problems, which have the columns it asks for.

    Raises:
        ConfigError: if the settings contradict each other, or there are no such problems.
        RewardError: if there is no such verifier.
    """
    if spec.temperature == 0 and spec.samples > 1:
        raise ConfigError(
            f"evaluation.temperature=0 gives the same completion {spec.samples} times: set evaluation.samples=1"
        )
    verifier = _verifier(spec.verifier)
    needs = {"prompt", *verifier.required}
    return verifier, load_rows(spec.prompts, count=spec.limit, needs=needs, spoken=("prompt",))
