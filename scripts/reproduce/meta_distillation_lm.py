"""Part 2 of meta_distillation.py: a language model that learns from its own samples, generation after generation.

Every generation the last one answers prompts, and the student, which goes on from it, is fitted to that finite text:
at each position the target is the sampled token (what finite sampling leaves of the last generation) mixed with the
base's distribution, arithmetically, with strength 0 or 0.3. Without the anchor this is plain training on one's own
output; both arms see the same number of tokens and updates.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from sampled_texts import Texts
from torch import Tensor

from imgrl.anchor import categorical_kl
from imgrl.objectives.text import meta_distill_loss, meta_target, reduce
from imgrl.resources import model_path
from imgrl.world.arithmetic import problems, verify

ARMS = {"free": 0.0, "anchored": 0.3}
TEXTS, EPOCHS, BATCH, LEARNING_RATE = 128, 3, 32, 3e-4


def fit(student: Any, base: Any, texts: Texts, *, strength: float, generator: torch.Generator) -> None:
    """Minimise KL(target || student) by token on the texts."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(texts.ids), generator=generator).split(BATCH):
            logits = texts.logits(student, rows)
            with torch.no_grad():
                anchor = texts.logits(base, rows)
            # A small number in the place of zero: a target may not be minus infinity.
            seen = torch.nn.functional.one_hot(texts.answer[rows], logits.shape[-1]).float().clamp_min(1e-30)
            target = meta_target(seen.log(), base=anchor, strength=strength)
            loss = reduce(meta_distill_loss(logits, target), texts.mask[rows], how="token")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()


@torch.no_grad()
def judge(student: Any, base: Any, tokenizer: Any, fixed: Texts) -> dict[str, float]:
    """Distance to the base on the base's own texts, its tail, and diversity and accuracy of the student's samples."""
    rows = torch.arange(len(fixed.ids))
    own, anchor = fixed.logits(student, rows), fixed.logits(base, rows)
    p, q = anchor.softmax(-1), own.softmax(-1)
    rare = (p > 1e-3) & (p < 0.2)  # what the base says now and then

    def mean(values: Tensor) -> float:
        return float(reduce(values, fixed.mask, how="token"))

    asked = [problem.prompt for problem in problems(27, split="heldout", seed=7)]
    sampled = Texts(student, tokenizer, asked, each=4)
    right = [verify(asked[i // 4], text) for i, text in enumerate(sampled.texts)]
    different = [len(set(sampled.texts[i : i + 4])) / 4 for i in range(0, len(sampled.texts), 4)]
    return {
        "kl_to_base": mean(categorical_kl(own, anchor, direction="forward")),
        "entropy": mean(-(q * own.log_softmax(-1)).sum(-1)),
        "tail_mass": mean((q * rare).sum(-1)),
        "distinct_6": distinct(sampled.texts, 6),
        "distinct_of_4": float(np.mean(different)),
        "pass_1": float(np.mean(right)),
    }


def distinct(texts: list[str], n: int) -> float:
    """Different runs of ``n`` characters over all runs."""
    grams = [text[i : i + n] for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def generations(name: str, *, seed: int, count: int) -> dict[str, list[dict[str, float]]]:
    """Both arms' measurements at generation 0 (the base) to ``count``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_path(name)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    out: dict[str, list[dict[str, float]]] = {}
    for arm, strength in ARMS.items():
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        fixed = Texts(base, tokenizer, [p.prompt for p in problems(48, split="heldout", seed=1)])
        student = copy.deepcopy(base)
        out[arm] = [judge(student, base, tokenizer, fixed)]
        for generation in range(count):
            asked = problems(TEXTS, seed=1000 * seed + generation)
            texts = Texts(student, tokenizer, [problem.prompt for problem in asked])
            fit(student, base, texts, strength=strength, generator=generator)
            out[arm].append(judge(student, base, tokenizer, fixed))
            print(arm, seed, generation + 1, out[arm][-1], flush=True)
    return out
