"""What every image objective receives, returns and declares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from imgrl.anchor import Schedule, VelocityAnchor, identity
from imgrl.anchor.centering import Gather
from imgrl.flow import StochasticSampler, TimeSampler
from imgrl.flow.conventions import require_same_shape
from imgrl.types import Noised, Transition

__all__ = ["Batch", "LossOutput", "Objective", "require_noised", "require_old", "require_transition"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Whole groups (over all processes) at noised points; all velocities saw the same point and prompt."""

    current: Float[Tensor, " n *d"]
    """Velocity of the trained weights; the only one with a gradient."""
    old: Float[Tensor, " n *d"] | None = None
    """Velocity of the lagging copy, taken before the round's first optimiser step."""
    anchor: Float[Tensor, " n *d"] | None = None
    """Velocity of the frozen model at the anchor's guidance; None where the anchor's weight is 0."""
    noised: Noised | None = None
    """The point of a forward-process objective: clean, noise, sigma, noisy, target."""
    transition: Transition | None = None
    """The point of a policy gradient: one random step of the rollout."""
    advantage: Float[Tensor, " n"]
    """Reward relative to its group, in standard deviations, not yet clipped."""
    raw: Float[Tensor, " n"]
    """Combined raw reward."""
    group: Int[Tensor, " n"]
    """Images with the same number share a prompt and a noise level."""

    def __post_init__(self) -> None:
        """Refuse rows that do not belong together."""
        rows = {"advantage": self.advantage, "raw": self.raw, "group": self.group}
        if (self.noised is None) == (self.transition is None):
            raise ValueError("Expected either noised points or transitions in a Batch, not both or neither.")
        if self.noised is not None:
            require_same_shape(current=self.current, target=self.noised.target)
            rows["sigma"] = self.noised.sigma
        if self.transition is not None:
            require_same_shape(current=self.current, state=self.transition.state, after=self.transition.after)
            rows["log_prob"] = self.transition.log_prob
        require_same_shape(**rows, rows=self.current.flatten(1)[:, 0])


class LossOutput(NamedTuple):
    """Per-sample loss, with its parts for the log."""

    loss: Tensor
    """[n]; the caller takes the mean."""
    metrics: dict[str, Tensor]
    """Name -> [n], detached; the caller takes means over samples and updates."""


@runtime_checkable
class Objective(Protocol):
    """An algorithm: a per-sample loss and the declarations the training loop acts on."""

    name: str
    anchored: tuple[str, str, str]
    """Anchors, discrepancies and where they enter: a row of the README's table."""
    uses_old: bool
    """Whether the loss needs the old copy's velocity."""
    shares_noise: bool
    """Whether all images of a group are noised alike."""

    @property
    def times(self) -> TimeSampler | None:
        """Noise levels to train on; None for an objective that trains on random steps of the rollout."""
        ...

    @property
    def sampler(self) -> StochasticSampler | None:
        """The random steps of the rollout; None for a forward-process objective, whose rollouts are ODEs."""
        ...

    @property
    def needs_mean(self) -> bool:
        """Whether a rollout must keep the means of its random steps."""
        ...

    @property
    def anchor(self) -> VelocityAnchor:
        """The pull towards the pretrained model."""
        ...

    @property
    def old(self) -> Schedule:
        """Decay of the old copy by optimiser step."""
        ...

    @property
    def sampling(self) -> Schedule | None:
        """Decay of the copy that makes the images; None means the old copy makes them."""
        ...

    @property
    def advantage_clip(self) -> float:
        """Advantages beyond this many standard deviations count as this many."""
        ...

    def loss(self, batch: Batch, *, gather: Gather = identity) -> LossOutput:
        """Policy term plus anchor term of each sample."""
        ...


def require_old(batch: Batch, name: str) -> Tensor:
    """The old copy's velocity; ValueError if the batch lacks it."""
    if batch.old is None:
        raise ValueError(f"Expected Batch.old, the old copy's velocity, for objective {name!r}, got None.")
    return batch.old


def require_noised(batch: Batch, name: str) -> Noised:
    """The noised points; ValueError if the batch holds transitions."""
    if batch.noised is None:
        raise ValueError(
            f"Expected Batch.noised, the noised points, for objective {name!r}, got transitions."
        )
    return batch.noised


def require_transition(batch: Batch, name: str) -> Transition:
    """The random step; ValueError if the batch holds noised points."""
    if batch.transition is None:
        raise ValueError(
            f"Expected Batch.transition, a random step, for objective {name!r}, got noised points."
        )
    return batch.transition
