"""Weights that stay behind, as descriptions: what a copy is, and how it follows the trained weights.

A description holds no tensors. ``decay(step)`` is the share of the copy that survives an update at that
optimiser step, and ``blend`` carries it out; where the tensors live is the policy's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from imgrl.anchor.schedule import Constant, Schedule
from imgrl.flow import full_precision

__all__ = ["Anchor", "Ema", "Frozen", "Mixture", "Snapshot", "Switch", "blend"]


@runtime_checkable
class Anchor(Protocol):
    """Weights that follow the trained ones by a rule."""

    def decay(self, step: int) -> float:
        """Share of the copy kept at this optimiser step: 1 is untouched, 0 becomes the trained weights."""
        ...


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A copy that never moves: the pretrained model."""

    name: ClassVar[str] = "frozen"

    def decay(self, step: int) -> float:
        """Always 1."""
        del step
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Ema:
    """Exponential moving average with a scheduled decay."""

    name: ClassVar[str] = "ema"

    schedule: Schedule = Constant(value=0.99)

    def decay(self, step: int) -> float:
        """The schedule's value."""
        return self.schedule(step)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy renewed every ``every`` optimiser steps and constant in between."""

    name: ClassVar[str] = "snapshot"

    every: int = 100

    def __post_init__(self) -> None:
        """Refuse an interval that never comes."""
        if self.every < 1:
            raise ValueError(f"Expected Snapshot(every >= 1), got {self.every}; use Frozen for no renewal.")

    def decay(self, step: int) -> float:
        """0 on renewal, else 1."""
        return 0.0 if step % self.every == 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One rule after another; the copy restarts from the trained weights when a rule takes over."""

    phases: tuple[tuple[int, Anchor], ...] = ((0, Frozen()),)
    """``(first step, rule)`` with rising steps, the first at 0."""

    def __post_init__(self) -> None:
        """Refuse gaps and disorder."""
        steps = [step for step, _ in self.phases]
        if not steps or steps[0] != 0 or any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
            raise ValueError(f"Expected Switch phases at rising steps that begin at 0, got steps {steps}.")

    def decay(self, step: int) -> float:
        """0 at a switch (the distance to the copy is then 0), else the active rule's decay."""
        at, rule = [phase for phase in self.phases if phase[0] <= step][-1]
        return 0.0 if step == at and at > 0 else rule.decay(step)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several anchors as one distribution over a vocabulary."""

    weights: tuple[float, ...] = (0.5, 0.5)
    """One per anchor, at least 0, summing to 1."""
    space: Literal["log", "prob"] = "log"
    """``log`` is the geometric mean (minimiser of the mean reverse KL), ``prob`` the arithmetic (of the
    forward)."""

    def __post_init__(self) -> None:
        """Refuse weights that are no distribution."""
        if min(self.weights, default=-1) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"Expected Mixture weights >= 0 that sum to 1, got {self.weights}.")
        if self.space not in ("log", "prob"):
            raise ValueError(f"Unknown mixture space {self.space!r}; choose 'log' or 'prob'.")

    def __call__(self, *log_probs: Float[Tensor, " *n k"]) -> Float[Tensor, " *n k"]:
        """Normalised log-probabilities of the mixture in float32 or better, without gradient."""
        if len(log_probs) != len(self.weights):
            raise ValueError(
                f"Expected {len(self.weights)} anchors for {self.weights}, got {len(log_probs)}."
            )
        stacked = torch.stack([full_precision(item.detach()).log_softmax(-1) for item in log_probs])
        weights = stacked.new_tensor(self.weights).view(-1, *[1] * (stacked.ndim - 1))
        if self.space == "prob":
            return torch.logsumexp(stacked + weights.log(), 0)
        return (torch.where(weights > 0, stacked, 0.0) * weights).sum(0).log_softmax(-1)


@torch.no_grad()
def blend(copy: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """In place and without gradient: ``copy = decay copy + (1 - decay) current``, tensor by tensor."""
    if not 0 <= decay <= 1:
        raise ValueError(f"Expected a decay in [0, 1], got {decay}.")
    if len(copy) != len(current) or any(a.shape != b.shape for a, b in zip(copy, current, strict=False)):
        raise ValueError(
            f"Expected matching tensors, got {len(copy)} and {len(current)} or different shapes."
        )
    if not copy or decay == 1:
        return
    foreach: Any = torch  # its multi-tensor kernels, one launch for all tensors, have private names
    if decay == 0:  # exact, also where the copy holds infinities
        foreach._foreach_copy_(list(copy), list(current))
    else:
        news = [new.to(kept) for kept, new in zip(copy, current, strict=True)]
        foreach._foreach_lerp_(list(copy), news, 1 - decay)
