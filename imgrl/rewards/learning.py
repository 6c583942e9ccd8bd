"""Rewards that learn: what they are called with beside scoring, and what several processes owe each other.

A reward learns if it has a method ``learn(images, prompts, *, peers) -> metrics``. Its ``state_dict(peers)`` and
``load_state_dict(state, peers)`` are part of every checkpoint. It may have

- ``prepare(height, width, round_trip)``, called before the first score;
- ``probe(height, width)``, called in place of it where only a recipe is checked;
- ``check_learning(prompts)``, which refuses prompts that it could not learn from;
- ``forget()``, called when images have been scored that it will not learn from;
- an attribute ``waits``, true while the policy should not train yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.base import Reward
from imgrl.types import Prompt

__all__ = ["Alone", "Learners", "Peers"]


class Peers(Protocol):
    """The processes of a run; every method must be called on all of them."""

    @property
    def rank(self) -> int:
        """Number of this process."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors that processes exchange must lie."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes, in rank order."""
        ...

    def add_numbers(self, values: Sequence[float]) -> list[float]:
        """Sums over processes."""
        ...

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over processes."""
        ...


class Alone:
    """A run of one process."""

    rank, size, device = 0, 1, torch.device("cpu")

    def gather(self, rows: Tensor) -> Tensor:
        """The rows themselves."""
        return rows

    def add_numbers(self, values: Sequence[float]) -> list[float]:
        """The numbers themselves."""
        return list(values)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Nothing to add."""


class Learners:
    """Those rewards of a set that learn."""

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        self.targets: dict[str, Any] = {
            name: reward.target for name, reward in rewards.items() if reward.learns
        }
        self.prepared = False
        """Whether they have been shown any."""

    def __bool__(self) -> bool:
        """Whether any learns."""
        return bool(self.targets)

    def prepare(self, *, height: int, width: int, round_trip: Callable[[Tensor], Tensor]) -> None:
        """Show each what images to come look like.

        Args:
            height: of the images.
            width: of the images.
            round_trip: images [n, 3, H, W] in [0, 1] through the policy's own autoencoder.
        """
        self.prepared = True
        for target in self.targets.values():
            if hasattr(target, "prepare"):
                target.prepare(height=height, width=width, round_trip=round_trip)

    def probe(self, *, height: int, width: int) -> None:
        """Have each see as much as a first score takes, unless they have been shown all."""
        if self.prepared:
            return
        self.prepared = True
        for target in self.targets.values():
            if hasattr(target, "probe"):
                target.probe(height=height, width=width)
            elif hasattr(target, "prepare"):
                target.prepare(height=height, width=width, round_trip=lambda images: images)

    @property
    def reference_bytes(self) -> int:
        """What references will take in main memory, as far as rewards say it once they have been probed."""
        return sum(getattr(target, "reference_bytes", 0) for target in self.targets.values())

    def check(self, prompts: Sequence[str]) -> None:
        """Ask each whether it could learn from images of all these prompts.

        Raises:
            RewardError: what it says, with the reward's name.
        """
        for name, target in self.targets.items():
            if hasattr(target, "check_learning"):
                try:
                    target.check_learning(prompts)
                except Exception as error:
                    raise RewardError(f"Reward {name!r}: {error}") from error

    def forget(self) -> None:
        """Tell each that it will not learn from the images scored since it last learned."""
        for target in self.targets.values():
            if hasattr(target, "forget"):
                target.forget()

    @property
    def waiting(self) -> bool:
        """Whether the policy should not train on this round."""
        return any(bool(getattr(target, "waits", False)) for target in self.targets.values())

    @property
    def alternating(self) -> bool:
        """Whether a reward has the policy wait in most rounds by design."""
        schedules = (getattr(target, "schedule", None) for target in self.targets.values())
        return any(getattr(schedule, "every", 1) > 1 for schedule in schedules)

    def learn(
        self, images: Tensor, prompts: Sequence[Prompt], *, peers: Peers | None = None
    ) -> dict[str, dict[str, float]]:
        """Let each learn from one process's images [n, 3, H, W] in [0, 1] of a round; its metrics by name."""
        texts = [prompt.text for prompt in prompts]
        return {
            name: dict(target.learn(images, texts, peers=peers or Alone()) or {})
            for name, target in self.targets.items()
        }

    def state_dict(self, peers: Peers | None = None) -> dict[str, Any]:
        """State by name; the same on every process."""
        return {name: target.state_dict(peers or Alone()) for name, target in self.targets.items()}

    def load_state_dict(self, state: Mapping[str, Any], peers: Peers | None = None) -> None:
        """Go on from a saved state.

        Raises:
            RewardError: if the state belongs to other rewards, or to one of another make.
        """
        if set(state) != set(self.targets):
            raise RewardError(
                f"The saved state is of the learning rewards {sorted(state)}, "
                f"but this run has {sorted(self.targets)}."
            )
        for name, target in self.targets.items():
            try:
                target.load_state_dict(state[name], peers or Alone())
            except (RuntimeError, KeyError, ValueError) as error:
                said = " ".join(str(error).split())[:200]
                raise RewardError(
                    f"The saved state of reward {name!r} does not fit it ({said}); resume with the version and settings"
                    " that wrote it, or start the run again."
                ) from error
