"""Plain flow matching on captioned pictures beside the rewards: what no sample shows, no reward can teach.

A reward tells apart what the policy already draws. Pictures of something new (a style, a character) enter an optimiser
step as a supervised term on the same weights: ``weight * mean ||v(x_sigma, prompt) - (noise - picture)||^2``, the
objective that the model was pretrained with (Lipman et al. 2023; Esser et al. 2024 for the logit-normal levels).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imgrl import flow
from imgrl.anchor.divergence import velocity_gap
from imgrl.errors import DataError
from imgrl.flow import TimeSampler
from imgrl.recipe import Imitation
from imgrl.rewards.references import References, load_references
from imgrl.training.distributed import World
from imgrl.training.seeds import IMITATION, PICTURES, generator, normal

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = ["Imitated", "load_captioned"]


def load_captioned(settings: Imitation, *, height: int, width: int) -> References:
    """The pictures to imitate.

    Raises:
        DataError: if one cannot be used, or they have no captions.
    """
    assert settings.pictures is not None
    found = load_references(settings.pictures, height=height, width=width)
    if not found.captions:
        raise DataError(
            f"imitation.pictures is {settings.pictures}, which has no captions: the model must be told what each "
            "shows, so give a .csv with the columns file and prompt, or a .jsonl, or leave imitation out."
        )
    return found


class Imitated:
    """Captioned pictures as the policy's autoencoder sees them, and the term that they add to a step.

    Args:
        policy: whose weights train; it encodes the pictures now, once.
        found: pictures of the policy's size.
        settings: how many a step, and their weight.
        seed: of the run.
        world: a step's pictures are shared by its processes.
    """

    def __init__(
        self, policy: Policy, found: References, *, settings: Imitation, seed: int, world: World
    ) -> None:
        self.policy, self.settings, self.seed, self.world = policy, settings, seed, world
        self.captions = found.captions
        with torch.no_grad():
            parts = [policy.to_latents(part.float() / 255).float() for part in found.images.split(8)]
        self.latents = torch.cat(parts)
        self.times = TimeSampler(kind="logit_normal", count=1)

    def weight(self, step: int) -> float:
        """Weight of the term at an optimiser step."""
        return self.settings.weight(step)

    def loss(self, step: int) -> Tensor:
        """Loss [n] of this process's share of a step's pictures, before its weight.

        Which pictures, levels and noise depends on the run's seed and the step alone, not on the processes.
        """
        every = self._chosen(step)
        mine = range(*self.world.share(self.settings.batch).indices(self.settings.batch))
        device = self.latents.device
        prompts, rows = zip(*(self.captions[every[place]] for place in mine), strict=True)
        clean = self.latents[torch.tensor(rows, device=device)]
        keys = [(self.seed, IMITATION, step, place) for place in mine]
        noise = normal(tuple(clean.shape[1:]), keys).to(device)
        none = torch.zeros(1)  # the rollout's levels, which continuous times do not look at
        drawn = [self.times.draw(none, generator(*key, 1)) for key in keys]
        sigma = torch.cat(drawn).to(device)
        velocity = self.policy.velocity(
            flow.add_noise(clean, noise, sigma), sigma, self.policy.encode(list(prompts)), weights="current"
        )
        return velocity_gap(velocity, flow.velocity_target(clean, noise))

    def _chosen(self, step: int) -> list[int]:
        """Captions of a step, all different where there are enough: whole permutations, one after another."""
        number, batch = len(self.captions), self.settings.batch
        first = step * batch
        epochs = range(first // number, (first + batch - 1) // number + 1)
        keys = [(self.seed, PICTURES, epoch) for epoch in epochs]
        order = [row for key in keys for row in torch.randperm(number, generator=generator(*key)).tolist()]
        start = first - epochs[0] * number
        return order[start : start + batch]
