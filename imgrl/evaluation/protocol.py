"""How evaluation images are made: fixed seeds, fixed sampler, nothing that depends on batch, process or order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from imgrl.types import Prompt

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = ["Protocol", "generate", "seed_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """Everything that decides evaluation images besides the model and the prompts.

    Raises:
        ValueError: if a count is below 1, the guidance below 1, the seed negative or the solver unknown.
    """

    images_per_prompt: int = 4
    """GenEval's number."""
    steps: int = 10
    """Sampler steps."""
    guidance: float = 1.0
    """Classifier-free guidance; 1 is off."""
    seed: int = 1234
    """Decides the initial noise of every image."""
    solver: Literal["euler", "dpm2"] = "euler"
    """Of the probability-flow ODE."""
    weights: str = "current"
    """Which of the policy's named weights."""
    batch: int | None = 64
    """Images sampled and decoded together; None takes all at once. Changes images by rounding only."""
    height: int | None = None
    """Pixels; None takes the model's own size."""
    width: int | None = None
    """Pixels; None takes the model's own size."""

    def __post_init__(self) -> None:
        for name in ("images_per_prompt", "steps", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of an evaluation protocol must be at least 1, got {value}.")
        if not self.guidance >= 1:
            raise ValueError(f"guidance must be at least 1 (1 is off), got {self.guidance}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
        if self.solver not in ("euler", "dpm2"):
            raise ValueError(f"solver must be euler or dpm2, got {self.solver!r}.")


def seed_of(protocol: Protocol, prompt: str, image: int) -> int:
    """The 63-bit seed of a prompt's image number ``image``; it depends on these and the protocol's seed alone.

    So a prompt's images are the same in any list, at any place in it and in any batch (spec adv_grpo D26). A text that
    stands in a list several times goes on counting its images.
    """
    digest = hashlib.sha256(prompt.encode()).digest()
    words = np.frombuffer(digest, dtype="<u4")[:4].tolist()
    # As a spawn key: such sequences never coincide with those of plain keys, which training uses.
    sequence = np.random.SeedSequence(protocol.seed, spawn_key=(*words, image))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _seeds(protocol: Protocol, prompts: Sequence[Prompt], rows: Sequence[int]) -> list[int]:
    """The seeds of some rows."""
    per, seen, before = protocol.images_per_prompt, Counter[str](), list[int]()
    for prompt in prompts:  # images that the same text has further up in the list
        before.append(per * seen[prompt.text])
        seen[prompt.text] += 1
    return [seed_of(protocol, prompts[r // per].text, before[r // per] + r % per) for r in rows]


def generate(
    policy: Policy, prompts: Sequence[Prompt], protocol: Protocol, *, rows: Sequence[int] | None = None
) -> Tensor:
    """Images float32 [n, 3, H, W] in [0, 1] on the CPU, sampled and decoded batch by batch.

    Row ``r`` is image ``r % images_per_prompt`` of prompt ``r // images_per_prompt``.

    Args:
        policy: the model.
        prompts: what to draw.
        protocol: how.
        rows: which rows, in the order wanted; None means all. A process passes its share and gets the very
            images that one process would have made.

    Raises:
        ValueError: if a row is out of range.
    """
    total = len(prompts) * protocol.images_per_prompt
    rows = range(total) if rows is None else rows
    if rows and not 0 <= min(rows) <= max(rows) < total:
        raise ValueError(
            f"rows of {len(prompts)} prompts with {protocol.images_per_prompt} images each must lie in "
            f"0..{total - 1}, got {min(rows)}..{max(rows)}."
        )
    step = protocol.batch or max(len(rows), 1)
    parts = [_batch(policy, prompts, protocol, rows[i : i + step]) for i in range(0, len(rows), step)]
    size = (protocol.height or policy.default_size, protocol.width or policy.default_size)
    return torch.cat(parts) if parts else torch.zeros(0, 3, *size)


def _batch(policy: Policy, prompts: Sequence[Prompt], protocol: Protocol, rows: Sequence[int]) -> Tensor:
    latents = policy.sample(
        policy.encode([prompts[row // protocol.images_per_prompt].text for row in rows]),
        _seeds(protocol, prompts, rows),
        steps=protocol.steps,
        weights=protocol.weights,
        guidance=protocol.guidance,
        solver=protocol.solver,
        height=protocol.height,
        width=protocol.width,
    )
    return policy.decode(latents).cpu()
