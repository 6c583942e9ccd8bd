"""Captioned pictures for pretraining: rendered truth of training prompts, tasks in fixed shares, imperfect captions."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

import imgrl  # noqa: F401
from imgrl.types import Prompt
from imgrl.world.captions import imperfect_caption
from imgrl.world.prompts import ALL_TASKS, prompts, random_signs, random_word, sign
from imgrl.world.render import render
from imgrl.world.styles import STYLES, style_picture

TASK_SHARES = {
    "single_object": 0.12,
    "two_object": 0.12,
    "counting": 0.20,
    "colors": 0.14,
    "position": 0.13,
    "color_attr": 0.15,
    "text": 0.14,
}
TEXT = "text"
RANDOM_WORDS = 0.7
"""Share of signs that show random letters: from a few hundred words alone the model learns words, not letters."""


@cache
def _pool(task: str) -> list[Prompt]:
    return prompts("pretraining", (task,))


@cache
def _kept_out() -> frozenset[str]:
    """Signs that reinforcement learning trains on and is judged by."""
    return frozenset(
        prompt.text
        for prompt in (*random_signs("train"), *random_signs("heldout"), *prompts("heldout", (TEXT,)))
    )


def draw_prompt(rng: np.random.Generator, *, signs: float = TASK_SHARES[TEXT]) -> Prompt:
    """A training prompt: the task by its share, then uniform within the task.

    Args:
        rng: the source of chance.
        signs: share of signs; the other tasks keep their proportions.
    """
    scale = (1 - signs) / (1 - TASK_SHARES[TEXT])
    shares = {task: scale * share for task, share in TASK_SHARES.items()} | {TEXT: signs}
    task = str(rng.choice(ALL_TASKS, p=[shares[t] for t in ALL_TASKS]))
    if task == TEXT and rng.random() < RANDOM_WORDS:
        while (prompt := sign(random_word(rng))).text in _kept_out():
            pass
        return prompt
    pool = _pool(task)
    return pool[rng.integers(len(pool))]


def training_batch(
    rng: np.random.Generator,
    count: int,
    *,
    tidy: bool = False,
    signs: float = TASK_SHARES[TEXT],
    wrong: float = 0.0,
) -> tuple[Tensor, list[str]]:
    """Pictures [count, 3, 64, 64] in [-1, 1] and their captions, whose attributes are wrong at the rate ``wrong``."""
    chosen = [draw_prompt(rng, signs=signs) for _ in range(count)]
    pixels = np.stack([render(prompt.columns, rng, tidy=tidy) for prompt in chosen])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, [imperfect_caption(prompt, rng, wrong=wrong, refused=_kept_out()) for prompt in chosen]


DRAWN_STYLES = tuple(style for style in STYLES if style not in ("plain", "noise"))


def styled_batch(rng: np.random.Generator, count: int) -> Tensor:
    """Pictures [count, 3, 64, 64] in [-1, 1] in the styles of the embedded world, half of them in other colours.

    For the decoder alone: a model's autoencoder has seen more manners of drawing than the model draws.
    """
    pixels = [
        style_picture(str(rng.choice(DRAWN_STYLES)), draw_prompt(rng, signs=0).columns, rng) / 127.5 - 1
        for _ in range(count)
    ]
    mixed = [_other_colors(rng, picture) if rng.random() < 0.5 else picture for picture in pixels]
    return torch.from_numpy(np.stack(mixed)).permute(0, 3, 1, 2).float()


def _other_colors(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """The picture [64, 64, 3] through a random affine map of its colours."""
    turn = np.eye(3)[rng.permutation(3)] * rng.uniform(0.3, 1, (3, 1)) * rng.choice([-1, 1], p=[0.3, 0.7])
    return np.clip(picture @ turn + rng.uniform(-0.3, 0.3, 3), -1, 1)
