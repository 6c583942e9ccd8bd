"""A head that reads: whether an image shows what a text says, learned from captioned references alone.

The text enters as in a projection discriminator (arXiv 1802.05637): the logit gains the inner product of a vector of
the image and one of the text. That of the text is learned too, from its words and pairs of neighbours, so no weights of
a language model are needed and captions of any kind will do.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imgrl.rewards.discriminator import Head, start_layers

__all__ = ["PromptHead", "places_of"]

_BUCKETS = 4096  # texts of a data set have some hundreds of words and pairs that matter


def places_of(text: str, buckets: int = _BUCKETS) -> list[int]:
    """A place below ``buckets`` for every word of a text and every pair of neighbours, the same on every machine."""
    words = re.findall(r"\w+", text.lower())
    pairs = [f"{first} {second}" for first, second in zip(words, words[1:], strict=False)]
    return [zlib.crc32(part.encode()) % buckets for part in [*words, *pairs]]


class PromptHead(Head):
    """A :class:`Head` with, beside it, how well an image and a text agree; float32."""

    def __init__(
        self, width: int, *, hidden: int = 512, text: int = 128, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(width, hidden=hidden, generator=generator)
        self.words = nn.EmbeddingBag(_BUCKETS, text, mode="sum")
        nn.init.normal_(self.words.weight, std=0.3, generator=generator)
        self.said = nn.Sequential(nn.LayerNorm(text), nn.Linear(text, text))
        self.shown = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, text))
        for part in (self.said, self.shown):
            start_layers(part, generator)

    def agreement(self, overall: Float[Tensor, "n d"], texts: Sequence[str]) -> Float[Tensor, " n"]:
        """What the texts add to the logits of their images."""
        places = [places_of(text) for text in texts]
        starts = torch.tensor([0, *(len(part) for part in places[:-1])]).cumsum(0)
        flat = torch.tensor([place for part in places for place in part], dtype=torch.int64)
        said = self.said(self.words(flat.to(overall.device), starts.to(overall.device)))
        return (said * self.shown(overall.float())).sum(-1) / said.shape[1] ** 0.5
