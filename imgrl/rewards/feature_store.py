"""What a reward that compares with pictures sees of both sides: references once, a round's images until learned from.

Training and scoring share this one way from pixels to features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.features import Extractor, Features, moved
from imgrl.rewards.reference_cache import ReferenceCache
from imgrl.rewards.references import References, load_references
from imgrl.rewards.round_memory import RoundMemory

__all__ = ["FeatureStore"]

_MOST_TOLD = 3  # prompts in a refusal


class FeatureStore:
    """References and images, as features.

    Args:
        references: see :func:`imgrl.rewards.references.load_references`.
        extractor: the frozen part: pixels to features.
    """

    def __init__(self, references: str, extractor: Extractor) -> None:
        self.source, self.extractor = references, extractor
        self._references: References | None = None
        self._seen: Features | None = None
        self._memory = RoundMemory()
        self.reference_bytes = 0
        """What the features of all references take in main memory; known after :meth:`probe`."""

    def probe(self, *, height: int, width: int) -> None:
        """Read and check all references, but look at two alone, as they are: enough for a first score, and cheap.

        Args:
            height: of the policy's images.
            width: of the policy's images.
        """
        self._references = self._load(height, width)
        two = self.extractor(self._references.images[:2].float() / 255)
        self.reference_bytes = len(self._references.images) * sum(part[0].nbytes for part in two)
        self._fit(two)

    def prepare(self, *, height: int, width: int, round_trip: Callable[[Tensor], Tensor]) -> None:
        """Read the references and see them as the policy would draw them.

        Their features stay in main memory: those of a thousand pictures fill a GPU, and a step needs few.

        Two are needed, whatever the size of a group or a round: each image is compared with one that is drawn with
        replacement, but a single picture is no style, and would only be learned by heart.

        Args:
            height: of the policy's images.
            width: of the policy's images.
            round_trip: images [n, 3, H, W] in [0, 1] through the policy's own autoencoder. Without it the easiest
                difference between the two sides is the autoencoder's fingerprint, which no policy can change. Where
                it has a ``cache`` (:class:`imgrl.rewards.reference_cache.KeptRoundTrip`), features are kept there too.
        """
        self._references = self._load(height, width)
        drawn = [round_trip(part.float() / 255) for part in self._references.images.split(32)]
        cache: ReferenceCache | None = getattr(round_trip, "cache", None)
        whole = torch.cat(drawn)
        raw = self.extractor(whole) if cache is None else cache.features(whole, self.extractor)
        raw = moved(raw, torch.device("cpu"))
        self._fit(raw)
        self._seen = self._standard(raw)
        self._memory.clear()

    def _load(self, height: int, width: int) -> References:
        """The references, checked; a kind that asks more of them says so here."""
        return load_references(self.source, height=height, width=width, least=2)

    def _fit(self, raw: Features) -> None:
        """Take from the references' features how :meth:`_standard` scales; as they are, unless a kind says more."""
        self._mean, self._scale = raw.patches.new_zeros(()), raw.patches.new_ones(())

    def _standard(self, raw: Features) -> Features:
        """Features as the head reads them."""
        return Features(*((part - self._mean.to(part.device)) / self._scale.to(part.device) for part in raw))

    def _known(self) -> References:
        """The references; RewardError before they have been read."""
        if self._references is None:
            raise RewardError("An adversarial reward must see its references first: call prepare().")
        return self._references

    def check_learning(self, prompts: Sequence[str]) -> None:
        """Refuse to learn from images of prompts that have no reference, where references belong to prompts.

        Said of all prompts at once and before the first round: in the middle of one, the process that draws such a
        prompt would stop while the others wait for it.

        Raises:
            RewardError: naming some of these prompts.
        """
        if lacking := self._known().lacking(prompts):
            told = ", ".join(map(repr, lacking[:_MOST_TOLD]))
            rest = f" and {len(lacking) - _MOST_TOLD} more" if len(lacking) > _MOST_TOLD else ""
            raise RewardError(
                f"{len(lacking)} of {len(set(prompts))} prompts to train on have no reference in {self.source}: "
                f"{told}{rest}; add pictures of them, or leave these prompts out."
            )

    def features(self, images: Tensor) -> Features:
        """The one way from pixels to what the head reads; images scored since it last learned are not seen twice."""
        self._known()
        known = self._memory.find(images)
        if known is None:
            known = self._standard(self.extractor(images))
            self._memory.add(images, known)
        return known

    def forget(self) -> None:
        """Free the memory of images that were scored, but are not to be learned from."""
        self._memory.clear()
