"""What customising a model to a style did, measured: the same prompts and seeds with and without what was learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from imgrl.evaluation.diversity import diversity
from imgrl.evaluation.grid import save_grid
from imgrl.evaluation.protocol import Protocol, generate
from imgrl.evaluation.style import style_figures
from imgrl.policies import Policy
from imgrl.types import Prompt

__all__ = ["Sides", "content_kept", "measure_style"]

STRENGTHS = (0.0, 0.5, 1.0)
_ROWS = 8  # prompts in the picture

See = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [n, 3, H, W] in [0, 1] -> pooled features [n, d] and patch features [n, p, d]."""

Agree = Callable[[Tensor, Sequence[Prompt]], Mapping[str, float]]
"""Images [n, 3, H, W] in [0, 1] and the prompt of each -> figures of how well they agree, by name."""


@dataclass(frozen=True, kw_only=True)
class Sides:
    """References, uint8 [n, 3, H, W]: those that were trained on and those kept back."""

    train: Tensor
    heldout: Tensor


def measure_style(
    policy: Policy,
    prompts: Sequence[Prompt],
    sides: Sides,
    *,
    protocol: Protocol,
    see: See,
    picture: Path,
    agree: Agree | None = None,
) -> dict[str, dict[str, float]]:
    """Figures of :class:`imgrl.evaluation.style.StyleFigures`, ``content`` and ``diversity`` by strength of the LoRA.

    Writes ``picture``: a row a prompt, a column a strength (0, 0.5, 1), one seed. References pass through the policy's
    own autoencoder first, so that its fingerprint is on both sides.

    Args:
        policy: with the LoRA as weights ``current``; it has it still afterwards.
        prompts: at least two, not trained on if there are enough.
        sides: the references.
        protocol: how images are made; its weights are chosen here.
        see: frozen features; :func:`imgrl.evaluation.style.caveats` says what it means if the reward reads them too.
        picture: PNG to write.
        agree: rewards that say whether the images still show what their prompts ask for; their figures come last.
    """
    if len(prompts) < 2:
        raise ValueError(f"Measuring a style needs at least two prompts, got {len(prompts)}.")
    drawn = {strength: _drawn(policy, prompts, protocol, strength) for strength in STRENGTHS}
    others = _drawn(policy, prompts, replace(protocol, seed=protocol.seed + 1), 0.0)
    train, heldout = (see(_round_trip(policy, side)) for side in (sides.train, sides.heldout))
    # KID's kernel has an offset of 1, so features must be of that size.
    unit = train[0].square().mean().sqrt()
    train, heldout, base = (_over(features, unit) for features in (train, heldout, see(others)))
    seen = {strength: _over(see(images), unit) for strength, images in drawn.items()}
    # From all of the set: its neighbours are alike.
    shown = list(range(0, len(prompts), -(-len(prompts) // _ROWS)))
    first = [images[:: protocol.images_per_prompt][shown] for images in drawn.values()]
    save_grid(torch.stack(first, 1).flatten(0, 1), picture, columns=len(STRENGTHS))
    group = torch.arange(len(prompts)).repeat_interleave(protocol.images_per_prompt)
    return {
        f"{strength:g}": {
            **style_figures(features, base=base, train=train, heldout=heldout).as_dict(),
            "content": content_kept(features[0], seen[0.0][0]),
            "diversity": diversity(drawn[strength], group),
            **({} if agree is None else agree(drawn[strength], [prompts[int(row)] for row in group])),
        }
        for strength, features in seen.items()
    }


def content_kept(images: Tensor, base: Tensor) -> float:
    """Share of images [n, d] that are more like the base image [n, d] of their own prompt and seed than like any other.

    Both sides lose their mean first, so that a style, which all images share, does not count. Chance is 1 / n.
    """
    own, other = (F.normalize(side - side.mean(0), dim=1) for side in (images, base))
    return float(((own @ other.T).argmax(1) == torch.arange(len(own))).float().mean())


def _over(features: tuple[Tensor, Tensor], unit: Tensor) -> tuple[Tensor, Tensor]:
    return features[0] / unit, features[1] / unit


def _drawn(policy: Policy, prompts: Sequence[Prompt], protocol: Protocol, strength: float) -> Tensor:
    """Images with the LoRA at a strength, which is put back."""
    from imgrl.policies.lora import LoraWeights

    if strength == 0:
        return generate(policy, prompts, replace(protocol, weights="frozen"))
    weights = policy.weights
    if not isinstance(weights, LoraWeights):
        raise ValueError("A style's strength is a LoRA's scale, but this policy has none.")
    kept = {name: tensor.clone() for name, tensor in weights.state_dict("current").items()}
    try:
        weights.scale("current", strength)
        return generate(policy, prompts, replace(protocol, weights="current"))
    finally:
        weights.load_state_dict("current", kept)


@torch.no_grad()
def _round_trip(policy: Policy, pixels: Tensor) -> Tensor:
    parts = [policy.decode(policy.to_latents(part.float() / 255)).cpu() for part in pixels.split(16)]
    return torch.cat(parts)
