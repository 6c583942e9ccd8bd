"""PickScore as a discriminator: the last layers of its image tower learn that references win (Adv-GRPO, eq. 7).

A head on features would forget the prompt, which is what a preference reward is for. So, as the released code does, the
last image layers themselves are trained, in float32 (updates of 5e-6 round to nothing in bfloat16), and the text tower,
both projections and the scale stay. The loss is pairwise: the reference beats the generated image of the same prompt,
``-log sigmoid(s_reference - s_generated)``. It learns only in rounds whose images outscore the references.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgrl.errors import RewardError
from imgrl.rewards.clip import ClipTower, clip_tower
from imgrl.rewards.discriminator import preference_loss
from imgrl.rewards.embeddings import chosen_device
from imgrl.rewards.features import Features, Frozen
from imgrl.rewards.references import References
from imgrl.rewards.rival import Rival
from imgrl.rewards.schedule import Schedule

__all__ = ["AdversarialPickScore"]


class AdversarialPickScore(Rival):
    """``scale * cosine / 26`` of a PickScore that follows the policy; begins as the reward ``pickscore``.

    Args:
        references: pictures *with prompts*: a .csv or .jsonl file; see
            :func:`imgrl.rewards.references.load_references`.
        model: a folder or hub name of a CLIP model of transformers.
        processor: where its tokenizer and its preprocessing are.
        layers: how many of the last image layers learn; the released code says 1, the paper 2.
        lr: Adam's rate.
        batch: pairs in a step; None for a round's.
        divisor: of the reward, not of the loss.
        schedule: fields of :class:`imgrl.rewards.schedule.Schedule`; by default one step in every round whose images
            outscore the references, and no warm-up.
        device: where it computes; None is the first GPU, if there is one.
        seed: of every draw.

    Raises:
        RewardError: if the model cannot be loaded, or references have no prompts.
    """

    def __init__(
        self,
        *,
        references: str,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        layers: int = 1,
        lr: float = 5e-6,
        batch: int | None = 32,
        divisor: float = 26.0,
        schedule: dict[str, Any] | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        if not divisor > 0:
            raise ValueError(f"Expected divisor > 0, got {divisor}.")
        self.tower, self.divisor = clip_tower(model, processor, chosen_device(device)), divisor
        depth = int(self.tower.model.config.vision_config.num_hidden_layers)
        if not 1 <= layers < depth:
            raise ValueError(
                f"{model} has {depth} image layers, so 1 to {depth - 1} can learn, got {layers}."
            )
        super().__init__(
            references=references,
            extractor=_Stem(model, self.tower, learning=layers),
            head=_Tail(self.tower, layers),
            loss="pairwise",
            lr=lr,
            batch=batch,
            replay=0.0,
            memory=1,
            schedule=Schedule(**{"steps": 1, "warmup": 0, "enough": 1.0, "gate": True, **(schedule or {})}),
            seed=seed,
        )

    def _load(self, height: int, width: int) -> References:
        references = super()._load(height, width)
        if not references.of_prompt:  # a picture of something else would teach it to ignore the text
            raise RewardError(
                f"PickScore compares a reference with the image of the same prompt, but {self.source} gives none; "
                "name one for each picture in a .csv or .jsonl file, or use the reward adversarial."
            )
        return references

    def score(self, features: Features, prompts: Sequence[str]) -> Tensor:
        """The reward [n]."""
        return self._logit(features, prompts) / self.divisor

    def _logit(self, features: Features, prompts: Sequence[str]) -> Tensor:
        return self.tower.scale * (self.head(features) * self.tower.texts(prompts).clone()).sum(-1)

    def _loss(
        self,
        real: Features,
        fake: Features,
        *,
        captions: Sequence[str],
        prompts: Sequence[str],
        generator: torch.Generator,
    ) -> Tensor:
        return preference_loss(self._logit(real, captions), self._logit(fake, prompts)).mean()


class _Stem(Frozen):
    """What enters the layers that learn: the class token and the patches, before any norm."""

    def __init__(self, name: str, tower: ClipTower, *, learning: int) -> None:
        settings, processor = tower.model.config.vision_config, tower.processor.image_processor
        side, mean, std = int(settings.image_size), processor.image_mean, processor.image_std
        options = {"side": side, "mean": mean, "std": std, "batch": tower.batch, "layers": learning}
        super().__init__(name, tower.model.vision_model, **options)

    def _see(self, pixels: Tensor) -> Features:
        found = self.network(pixel_values=pixels, output_hidden_states=True)
        tokens = found.hidden_states[-self.layers - 1]  # the last of all is the last layer's output
        return Features(tokens[:, 0], tokens[:, 1:])


class _Tail(nn.Module):
    """Copies of the layers that learn, and behind them what stays as it is."""

    def __init__(self, tower: ClipTower, layers: int) -> None:
        super().__init__()
        vision = tower.model.vision_model
        # Copies: the reward `pickscore`, which may measure beside this one, shares the tower.
        self.layers = copy.deepcopy(vision.encoder.layers[-layers:]).float().requires_grad_()
        self._rest = (vision.post_layernorm, tower.model.visual_projection)  # a tuple: no part of the state

    def forward(self, features: Features) -> Tensor:
        """Embeddings [n, d] of length 1."""
        tokens = torch.cat([features.overall[:, None], features.patches], dim=1)
        for layer in self.layers:
            found = layer(tokens, attention_mask=None)
            tokens = found if isinstance(found, Tensor) else found[0]  # a tuple before transformers 5
        norm, projection = self._rest
        return F.normalize(projection(norm(tokens[:, 0])).float(), dim=-1)
