"""A head that reads: whether an image shows what a text says, learned from captioned references alone.

The text decides what counts in each patch, feature by feature (a gate as in FiLM, arXiv 1709.07871), and what is left
is judged over all patches: mean features of a whole image hardly know the colour of a small object. The vector of the
text is learned too, from its words and pairs of neighbours, so no weights of a language model are needed and captions
of any kind will do.
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
        seen = max(1, hidden // 2)  # of every patch, so half as wide as what looks at one vector
        self.words = nn.EmbeddingBag(_BUCKETS, text, mode="sum")
        nn.init.normal_(self.words.weight, std=0.3, generator=generator)
        self.said = nn.Sequential(nn.LayerNorm(text), nn.Linear(text, seen), nn.Tanh())
        self.shown = nn.Sequential(nn.Linear(width, seen), nn.GELU())
        self.judged = nn.Sequential(nn.Linear(seen, seen), nn.GELU(), nn.Linear(seen, 1))
        for part in (self.said, self.shown, self.judged):
            start_layers(part, generator)

    def agreement(self, patches: Float[Tensor, "n p d"], texts: Sequence[str]) -> Float[Tensor, " n"]:
        """What the texts add to the logits of their images."""
        places = [places_of(text) for text in texts]
        starts = torch.tensor([0, *(len(part) for part in places[:-1])]).cumsum(0)
        flat = torch.tensor([place for part in places for place in part], dtype=torch.int64)
        gate = self.said(self.words(flat.to(patches.device), starts.to(patches.device)))
        return self.judged(gate * self.shown(patches.float()).mean(1)).squeeze(-1)
