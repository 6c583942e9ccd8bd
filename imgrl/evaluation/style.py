"""Has the style been learned, and what did it cost? Statistics of frozen features that a caller gives.

Pooled features are [n, d], one vector an image; patch features are [n, p, d]. Held-out references are pictures that the
reward never saw, and the probe is fitted afresh, so nothing here is the discriminator that was trained.

They are only as independent of that reward as the features are. ``imgrl style`` takes them from EfficientNet-Lite0, the
only network for pictures at large whose weights come with a package, and its recipe's reward reads the same ones: what
fools that network raises these figures too, and :func:`caveats` says so. None asks whether a prompt is fulfilled.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "StyleFigures",
    "caveats",
    "gram_distance",
    "kid",
    "nearest_cosine",
    "probe_share",
    "style_figures",
]


@dataclass(frozen=True, kw_only=True)
class StyleFigures:
    """One set of images against the references of a style."""

    probe: float
    """Share that a fresh linear probe takes for the style; about 0 for base images, 1 for the style."""
    gram: float
    """Distance of mean Gram matrices, relative to the references' own; 0 is the same texture."""
    kid: float
    """Kernel Inception Distance, unbiased, so 0 on average for the same distribution and sometimes below."""
    copied: float
    """Share of images closer to a training reference than 99 % of held-out references are."""

    def as_dict(self) -> dict[str, float]:
        """Plain numbers by name."""
        return asdict(self)


def caveats(features: str, *, of_reward: str) -> list[str]:
    """What figures of a style cannot tell, a sentence each.

    Args:
        features: name of the network that measured.
        of_reward: name of the network that the training reward read.
    """
    content = (
        "content is the share of images whose nearest image of the base model is that of their own prompt and seed: "
        "what the base model drew is still recognised. It is no agreement with the prompt; ask a reward for that."
    )
    if features != of_reward:
        return [content]
    same = (
        f"All figures but diversity are measured on features of {features}, which the training reward reads too: the "
        "probe is fresh and the pictures kept back are new, but what fools that network raises these figures as well, "
        "so look at the pictures."
    )
    return [same, content]


def style_figures(
    images: tuple[Tensor, Tensor],
    *,
    base: tuple[Tensor, Tensor],
    train: tuple[Tensor, Tensor],
    heldout: tuple[Tensor, Tensor],
) -> StyleFigures:
    """All figures for (pooled, patch) features of images, of the base model's images and of both sets of references."""
    reach = nearest_cosine(heldout[0], train[0]).quantile(0.99)
    return StyleFigures(
        probe=float(probe_share(images[0], style=train[0], other=base[0])),
        gram=float(gram_distance(images[1], heldout[1])),
        kid=float(kid(images[0], heldout[0])),
        copied=float((nearest_cosine(images[0], train[0]) > reach).float().mean()),
    )


def probe_share(
    images: Tensor,
    *,
    style: Tensor,
    other: Tensor,
    decay: float = 1e-2,
) -> Tensor:
    """Share of images on the style's side of a ridge-regularised logistic regression between style and other.

    Features are standardised and both sides weigh alike. It knows nothing of the reward's own discriminator.
    """
    both = torch.cat([style, other]).double()
    mean, scale = both.mean(0), both.std(0) + 1e-6
    inputs = F.pad((both - mean) / scale, (0, 1), value=1.0)
    sign = torch.cat([torch.ones(len(style)), -torch.ones(len(other))]).double()
    weight = torch.cat([torch.full((len(side),), 0.5 / len(side)) for side in (style, other)]).double()
    line = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight * F.softplus(-sign * (inputs @ line))).sum() + decay * line[:-1].square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    seen = F.pad((images.double() - mean) / scale, (0, 1), value=1.0)
    return (seen @ line.detach() > 0).float().mean()


def gram_distance(images: Tensor, references: Tensor) -> Tensor:
    """``||G - G_ref|| / ||G_ref||`` of mean Gram matrices of patches [n, p, d] (Gatys et al. 2016): texture only."""

    def gram(patches: Tensor) -> Tensor:
        flat = patches.flatten(0, 1).double()
        return flat.T @ flat / len(flat)

    target = gram(references)
    return (gram(images) - target).norm() / target.norm()


def kid(images: Tensor, references: Tensor) -> Tensor:
    """Unbiased MMD^2 with the kernel ``(x y / d + 1)^3`` (Binkowski et al. 2018).

    Raises:
        ValueError: with fewer than two images on a side.
    """
    n, m = len(images), len(references)
    if n < 2 or m < 2:
        raise ValueError(f"KID needs two images on each side, got {n} and {m}.")
    x, y = images.double(), references.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    own, other = kernel(x, x), kernel(y, y)
    within = (own.sum() - own.diagonal().sum()) / (n * (n - 1))
    among = (other.sum() - other.diagonal().sum()) / (m * (m - 1))
    return within + among - 2 * kernel(x, y).mean()


def nearest_cosine(images: Tensor, references: Tensor) -> Tensor:
    """Cosine of each image with the reference most like it."""
    return (F.normalize(images, dim=-1) @ F.normalize(references, dim=-1).T).amax(1)
