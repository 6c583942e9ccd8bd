"""Captioned pictures for pretraining: rendered truth of training prompts, tasks in fixed shares."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

import imgrl  # noqa: F401
from imgrl.types import Prompt
from imgrl.world.prompts import ALL_TASKS, prompts
from imgrl.world.render import render

TASK_SHARES = {
    "single_object": 0.12,
    "two_object": 0.14,
    "counting": 0.16,
    "colors": 0.14,
    "position": 0.15,
    "color_attr": 0.15,
    "text": 0.14,
}


@cache
def _pool(task: str) -> list[Prompt]:
    return prompts("train", (task,))


def draw_prompt(rng: np.random.Generator) -> Prompt:
    """A training prompt: the task by its share, then uniform within the task."""
    task = rng.choice(ALL_TASKS, p=[TASK_SHARES[t] for t in ALL_TASKS])
    pool = _pool(str(task))
    return pool[rng.integers(len(pool))]


def training_batch(rng: np.random.Generator, count: int, *, tidy: bool = False) -> tuple[Tensor, list[str]]:
    """Pictures [count, 3, 64, 64] in [-1, 1] and their captions."""
    chosen = [draw_prompt(rng) for _ in range(count)]
    pixels = np.stack([render(prompt.columns, rng, tidy=tidy) for prompt in chosen])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, [prompt.text for prompt in chosen]
