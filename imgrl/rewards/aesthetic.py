"""LAION's aesthetic predictor (improved, 2022): a linear stack on CLIP ViT-L/14 image features; no prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imgrl.rewards.clip import clip_tower
from imgrl.rewards.embeddings import chosen_device
from imgrl.rewards.fingerprint import fingerprint
from imgrl.rewards.hub import load_whole, read_weights, weight_file

__all__ = ["Aesthetic", "linear_stack"]

_WIDTHS = (1024, 128, 64, 16, 1)


class Aesthetic:
    """About 1 to 10; photographs 4.5 to 6.5.

    Args:
        weights: the predictor's, under its own names (``layers.0.weight`` ...): the original
            ``sac+logos+ava1-l14-linearMSE.pth``, 3.7 MB; None takes TRL's copy from the hub.
        model: a folder or hub name of CLIP ViT-L/14, whose features the predictor was trained on.
        device: where it computes; None is the first GPU, if there is one.

    Raises:
        RewardError: if the weights are missing or of another shape.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        model: str = "openai/clip-vit-large-patch14",
        device: str | None = None,
    ) -> None:
        file = weight_file(weights, repository="trl-lib/ddpo-aesthetic-predictor", file="aesthetic-model.pth")
        where = chosen_device(device)
        self.tower = clip_tower(model, model, where)
        self.stack = linear_stack(int(self.tower.model.config.projection_dim))
        given = {str(name).removeprefix("layers."): tensor for name, tensor in read_weights(file).items()}
        load_whole(self.stack, given, file=file, what=f"an aesthetic predictor for {model}")
        self.stack.to(where)

    @property
    def identity(self) -> str:
        """Digest of the weights, whatever file they came from."""
        return fingerprint(self.tower.model, fingerprint(self.stack))

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n] of images [n, 3, H, W] in [0, 1]."""
        return self.stack(self.tower.images(images)).squeeze(-1).cpu()


def linear_stack(width: int) -> nn.Sequential:
    """Five linear layers from ``width`` to one number, numbered as where they were trained with dropout between.

    There are no activations, and dropout does nothing after training. ImageReward has the same head.
    """
    drops = (0.2, 0.2, 0.1, None, None)
    layers: list[nn.Module] = []
    for inner, drop in zip(_WIDTHS, drops, strict=True):
        layers.append(nn.Linear(width, inner))
        layers += [] if drop is None else [nn.Dropout(drop)]
        width = inner
    return nn.Sequential(*layers).eval().requires_grad_(False)
