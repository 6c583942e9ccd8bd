"""LAION's aesthetic predictor (improved, 2022): a linear stack on CLIP ViT-L/14 image features; no prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from imgrl.errors import RewardError
from imgrl.rewards.clip import chosen_device, open_clip_tower

__all__ = ["Aesthetic"]

_WIDTHS = (1024, 128, 64, 16, 1)


class Aesthetic:
    """About 1 to 10; photographs 4.5 to 6.5.

    Args:
        weights: ``sac+logos+ava1-l14-linearMSE.pth``, 3.7 MB, from the predictor's repository.
        model: a folder or hub name of CLIP ViT-L/14, whose features the predictor was trained on.
        device: where it computes; None is the first GPU, if there is one.

    Raises:
        RewardError: if the weights are missing or of another shape.
    """

    def __init__(
        self,
        *,
        weights: str,
        model: str = "openai/clip-vit-large-patch14",
        device: str | None = None,
    ) -> None:
        self.device = chosen_device(device)
        self.tower = open_clip_tower(model, model, self.device)
        width = int(self.tower.model.config.projection_dim)
        self.stack = _stack(width).to(self.device)
        _load(self.stack, Path(weights))

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [n] of images [n, 3, H, W] in [0, 1]."""
        return self.stack(self.tower.images(images)).squeeze(-1).cpu()


def _stack(width: int) -> nn.Sequential:
    """The predictor's layers under its names; it has no activations, and dropout does nothing after training."""
    drops = (0.2, 0.2, 0.1, None, None)
    layers: list[nn.Module] = []
    for inner, drop in zip(_WIDTHS, drops, strict=True):
        layers.append(nn.Linear(width, inner))
        layers += [] if drop is None else [nn.Dropout(drop)]
        width = inner
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _load(stack: nn.Sequential, file: Path) -> None:
    if not file.is_file():
        raise RewardError(
            f"The aesthetic predictor's weights {file} do not exist; download sac+logos+ava1-l14-linearMSE.pth and "
            "give its path as args.weights."
        )
    try:
        given = torch.load(file, map_location="cpu", weights_only=True)
        stack.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in given.items()})
    except Exception as error:
        raise RewardError(f"{file} does not hold the aesthetic predictor's weights: {error}") from error
