"""Trains assets/tiny-lm, a character-level language model of verifiable arithmetic, from scratch, resumable.

    python scripts/pretrain_tiny_lm.py --work runs/tiny-lm

The corpus is imperfect on purpose (see --slips and --terse), as real ones are, and training stops early: a model that
samples at temperature 1 makes the corpus's mistakes and some of its own, so that reinforcement learning has something
to correct. Writes the state
every minute, ``<work>/pretrain.jsonl``, and at the end ``<work>/tiny-lm``, a stock transformers folder, with
``<work>/measured.json``: Pass@1 and Pass@8 by sampling on held-out problems.
"""

from __future__ import annotations

import argparse
import json
import math
import string
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import imgrl  # noqa: F401
from imgrl.world.arithmetic import LEVELS, TASKS, draw, problems, verify
from imgrl.world.mistakes import imperfect

BATCH, PARTS, LEARNING_RATE, CONTEXT = 64, 4, 3e-3, 128
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def build_tokenizer() -> Any:
    """One token a printable ASCII character; a beginning mark before every text, no end mark, padding left."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    signs = [*SPECIAL, "\n", *(sign for sign in string.printable if sign.isprintable())]
    tokenizer: Any = Tokenizer(models.WordLevel({sign: i for i, sign in enumerate(signs)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: Any, *, width: int = 160, layers: int = 4) -> Any:
    """A stock Llama with heads of 32; as given, of 1.3 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=14 * width // 5,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def build_optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW for the embedding and the vectors."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def batch(
    tokenizer: Any, rng: np.random.Generator, *, slips: float, terse: float
) -> list[tuple[Tensor, Tensor]]:
    """Training problems, sorted by length into parts with little padding.

    Each part is token ids [BATCH / PARTS, t], padded right, and labels with -100 on prompt and padding.
    """
    rows = []
    for _ in range(BATCH):
        problem = draw(rng)
        completion, _ = imperfect(problem, rng, slips=slips, terse_share=terse)
        prompt = tokenizer(problem.prompt).input_ids
        answer = [*tokenizer(completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        rows.append((prompt + answer, [-100] * len(prompt) + answer))
    rows.sort(key=lambda row: len(row[0]))
    parts = []
    for start in range(0, BATCH, BATCH // PARTS):
        part = rows[start : start + BATCH // PARTS]
        longest = len(part[-1][0])
        ids = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in part]
        labels = [labels + [-100] * (longest - len(labels)) for _, labels in part]
        parts.append((torch.tensor(ids), torch.tensor(labels)))
    return parts


def train_step(
    model: Any, optimizers: list[torch.optim.Optimizer], parts: list[tuple[Tensor, Tensor]]
) -> float:
    """One update; returns the loss in nats per token of the completions."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    tokens, total = sum(int((labels >= 0).sum()) for _, labels in parts), 0.0
    for ids, labels in parts:
        # Plain matrix products: the fused attention kernels are slow for short rows on a CPU.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits = model(input_ids=ids[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        (loss / tokens).backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return total / tokens


@torch.no_grad()
def measure(
    model: Any, tokenizer: Any, *, split: Any = "heldout", count: int = 90, samples: int = 8, seed: int = 0
) -> dict[str, float]:
    """Pass@1 and Pass@8 at temperature 1, and the greedy answer's accuracy, on ``count`` problems of a split.

    Pass@1 is the mean over all samples, Pass@8 the share of problems that one of 8 samples solves.
    """
    model.eval()
    rows = problems(count, split=split, seed=seed)
    inputs = tokenizer([row.prompt for row in rows], return_tensors="pt", padding=True)
    start = inputs.input_ids.shape[1]

    def right(**how: Any) -> np.ndarray:
        torch.manual_seed(seed)
        out = model.generate(
            **inputs, max_new_tokens=CONTEXT // 2, pad_token_id=tokenizer.pad_token_id, **how
        )
        texts = tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)
        many = len(texts) // len(rows)
        return np.array([verify(rows[i // many].prompt, text) for i, text in enumerate(texts)]).reshape(
            -1, many
        )

    sampled = right(do_sample=True, temperature=1.0, top_k=0, num_return_sequences=samples)
    greedy = right(do_sample=False)
    model.train()
    out = {"pass_1": sampled.mean(), f"pass_{samples}": sampled.any(1).mean(), "greedy": greedy.mean()}
    for key, values in (("task", TASKS), ("level", LEVELS)):
        for value in values:
            chosen = [getattr(row, key) == value for row in rows]
            out[f"pass_1/{value}"] = sampled[chosen].mean()
    return {name: round(float(value), 4) for name, value in out.items()}


def keep(work: Path, model: Any, optimizers: list[Any], spent: float, step: int) -> None:
    """Write the state under a temporary name, then rename it."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save({**state, "spent": spent, "step": step}, work / "state.tmp")
    (work / "state.tmp").replace(work / "state.pt")


def restore(work: Path, model: Any, optimizers: list[Any]) -> tuple[float, int]:
    """Load the state if there is one; seconds spent and steps made."""
    if not (work / "state.pt").exists():
        return 0.0, 0
    state = torch.load(work / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["spent"], state["step"]


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the stock folder, so that transformers 4 and 5 both load it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    for key in ("backend", "is_local", "local_files_only"):
        settings.pop(key, None)
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)


def main() -> None:
    """Train until the time is used up, then save and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/tiny-lm"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--steps", type=int, default=600, help="stop here if it comes before the time")
    parser.add_argument("--slips", type=float, default=0.45, help="share of solutions with a wrong step")
    parser.add_argument("--terse", type=float, default=0.15, help="share of right answers without steps")
    parser.add_argument(
        "--width", type=int, default=160, help="of the model, a multiple of 160; larger for a teacher"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.width < 160 or args.width % 160:
        parser.error(f"Expected a --width that is a multiple of 160, got {args.width}.")
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    torch.manual_seed(args.seed)
    model = build_model(tokenizer, width=args.width, layers=args.layers)
    optimizers = build_optimizers(model)
    spent, step = restore(args.work, model, optimizers)
    start = saved = time.monotonic()
    losses: list[float] = []
    with (args.work / "pretrain.jsonl").open("a") as log:
        while True:
            seconds = spent + time.monotonic() - start
            progress = max(seconds / (60 * args.minutes), step / args.steps)
            if progress >= 1:
                break
            for optimizer in optimizers:
                rate = LEARNING_RATE * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * progress))
                optimizer.param_groups[0]["lr"] = rate
            rng = np.random.default_rng([args.seed, step])
            parts = batch(tokenizer, rng, slips=args.slips, terse=args.terse)
            losses.append(train_step(model, optimizers, parts))
            step += 1
            if step % 100 == 0:
                row = {"step": step, "sequences": step * BATCH, "seconds": round(seconds)}
                row |= {"loss": round(sum(losses) / len(losses), 4)}
                losses.clear()
                if step % 500 == 0:
                    row |= measure(model, tokenizer, count=45, samples=4)
                print(row, flush=True)
                log.write(json.dumps(row) + "\n")
                log.flush()
            if time.monotonic() - saved > 60:
                saved = time.monotonic()
                keep(args.work, model, optimizers, spent + saved - start, step)
    keep(args.work, model, optimizers, spent + time.monotonic() - start, step)
    save(model, tokenizer, args.work / "tiny-lm")
    found = {split: measure(model, tokenizer, split=split, count=450) for split in ("train", "heldout")}
    (args.work / "measured.json").write_text(json.dumps(found, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    main()
