"""The values that travel through a training round: frozen, without behaviour.

Axes: ``n`` samples, ``C h w`` latent channels and size, ``H W`` pixels, ``L`` text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Conditioning", "Noised", "Prompt", "Samples", "Scores", "Transition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt of a data set, with the other fields of its row.

    Example:
        ``Prompt(id=3, text="a photo of a red circle", columns={"tag": "colors"})``
    """

    id: int
    """Position in the data set; identity of the prompt (never its text)."""
    text: str
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Every other field of the row, handed to rewards by keyword."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """What a text encoder said about ``n`` prompts; the keys belong to the model family."""

    tensors: Mapping[str, Tensor]
    """Each tensor has ``n`` as its first axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Images of one rollout with what is needed to train on them."""

    prompts: tuple[Prompt, ...]
    """One entry an image."""
    group: Tensor
    """int64 [n]: images with the same number share a prompt and are compared with each other."""
    seeds: tuple[int, ...]
    """Seed of each image's initial noise."""
    latents: Tensor
    """float32 [n, C, h, w]: clean latents (sigma 0)."""
    images: Tensor
    """float32 [n, 3, H, W] in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Rewards of ``n`` images, NaN where a reward failed or does not apply."""

    values: Mapping[str, Tensor]
    """Each reward's raw numbers, float32 [n]."""
    total: Tensor
    """float32 [n]: weighted combination over the rewards that apply."""
    mask: Tensor
    """bool [n]: False where the image must be left out of every statistic."""
    failures: Mapping[str, int]
    """How many images each reward failed on, after retries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noised:
    """Clean latents moved to noise level ``sigma``: what forward-process objectives train on."""

    clean: Tensor
    """[n, C, h, w]"""
    noise: Tensor
    """[n, C, h, w]"""
    sigma: Tensor
    """[n], 1 is pure noise and 0 is data."""
    noisy: Tensor
    """[n, C, h, w] = (1 - sigma) clean + sigma noise."""
    target: Tensor
    """[n, C, h, w] = noise - clean, the velocity to regress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """One random step of each sample's rollout: what policy gradients on sampling steps train on."""

    state: Tensor
    """[n, C, h, w]: before the step."""
    after: Tensor
    """[n, C, h, w]: the sample that was drawn."""
    log_prob: Tensor
    """[n]: its mean log-density under the weights that drew it."""
    mean: Tensor | None
    """[n, C, h, w]: the step's mean under those weights, where the objective needs it."""
    sigmas: Tensor
    """[levels]: the rollout's schedule."""
    index: int
    """Which of its steps this is."""
