"""The maths of a reward that learns: telling references from generated images (Adv-GRPO, arXiv 2511.20256).

The optimum of the cross-entropy and of the preference loss is ``log p_reference / p_generated`` (of the latter up to
a constant of the prompt, which centring within a group removes): its gradient over the policy's images is minus that of
``KL(policy || reference)``. The hinge's optimum is only the sign of that, so its gradient lives from a discriminator
that has not finished learning. Rewards are logits, never probabilities, which saturate.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["Head", "accuracy", "balanced", "preference_loss", "preferred", "side_loss", "start_layers"]

Kind = Literal["hinge", "bce"]


def side_loss(
    logit: Float[Tensor, " *n"], reference: Bool[Tensor, " *n"], *, kind: Kind = "hinge"
) -> Float[Tensor, " *n"]:
    """Loss of saying ``logit`` (positive: a reference) of each image: ``max(0, 1 - s)`` or ``log(1 + exp(-s))``.

    ``s`` is the logit with the sign of the truth. Eqs. 6 and 12 to 14 of the paper.
    """
    signed = torch.where(reference, logit, -logit)
    if kind == "hinge":
        return F.relu(1 - signed)
    if kind == "bce":
        return F.softplus(-signed)
    raise ValueError(f"Unknown discriminator loss {kind!r}; choose 'hinge' or 'bce'.")


def balanced(loss: Float[Tensor, " *n"], reference: Bool[Tensor, " *n"]) -> Float[Tensor, ""]:
    """Half the mean over references plus half the mean over the rest, so that neither side weighs more by number."""
    if not reference.any() or reference.all():
        raise ValueError(
            f"Expected both references and generated images, got {int(reference.sum())} and {int((~reference).sum())}."
        )
    return (loss[reference].mean() + loss[~reference].mean()) / 2


def preference_loss(
    reference: Float[Tensor, " n"], generated: Float[Tensor, " n"], *, label: Tensor | float = 1.0
) -> Float[Tensor, " n"]:
    """Bradley-Terry: ``-log sigmoid(reference - generated)`` for images of one prompt.

    ``label`` is the share of judges who preferred the reference. The entropy of the label is taken off, so the loss is
    0 where the scores say just that.
    """
    gap = reference - generated
    share = torch.as_tensor(label, dtype=gap.dtype, device=gap.device)
    entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))
    return share * F.softplus(-gap) + (1 - share) * F.softplus(gap) - entropy


def accuracy(logit: Float[Tensor, " *n"], reference: Bool[Tensor, " *n"]) -> Float[Tensor, ""]:
    """Balanced share of images on the right side of 0; 0.5 where nothing can be told."""
    right = torch.where(reference, logit > 0, logit < 0).to(torch.float32)
    return balanced(right, reference)


def preferred(reference: Float[Tensor, " n"], generated: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Share of pairs whose reference scores higher, a tie counting half; 0.5 where nothing can be told."""
    return ((reference > generated).float() + (reference == generated).float() / 2).mean()


def start_layers(network: nn.Module, generator: torch.Generator | None) -> None:
    """Draw the weights of every linear layer in a network as torch does by default, but from the given generator."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.weight.shape[1] ** -0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)


class Head(nn.Module):
    """A small network over features, shared by an image's global feature and its patches; float32."""

    def __init__(self, width: int, *, hidden: int = 512, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if width < 1 or hidden < 1:
            raise ValueError(f"Expected widths of at least 1, got {width} and {hidden}.")
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
        start_layers(self.layers, generator)

    def forward(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, " *n"]:
        """Logits of any number of features."""
        return self.layers(features.float()).squeeze(-1)
