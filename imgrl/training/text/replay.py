"""Whole groups of earlier steps, with the log-probabilities they were written with (ReMix)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["History", "Group", "pad_alike"]

Group = dict[str, Tensor]
"""One prompt's completions: every tensor of the batch for its rows, [group size, ...]."""
_LEFT = ("prompt_ids", "prompt_mask")  # prompts are padded on the left, completions on the right


class History:
    """The groups of the last steps, oldest first."""

    def __init__(self, steps: int) -> None:
        self.steps: deque[list[Group]] = deque(maxlen=steps)

    @property
    def ages(self) -> list[int]:
        """Which ages can be drawn: 1 is the step before this one."""
        return list(range(1, len(self.steps) + 1))

    def add(self, groups: list[Group]) -> None:
        """Keep a step's fresh groups; the oldest step falls out."""
        self.steps.append([{key: tensor.cpu() for key, tensor in group.items()} for group in groups])

    def draw(self, age: int, generator: torch.Generator) -> Group:
        """A group of a step ``age`` steps ago."""
        groups = self.steps[-age]
        return groups[int(torch.randint(len(groups), (1,), generator=generator))]

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors by ``replay/step/group/name``."""
        return {
            f"replay/{i}/{j}/{key}": tensor.contiguous()
            for i, groups in enumerate(self.steps)
            for j, group in enumerate(groups)
            for key, tensor in group.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Become what was saved."""
        self.steps.clear()
        found: dict[int, dict[int, Group]] = {}
        for name, tensor in state.items():
            kind, step, group, key = name.split("/", 3)
            if kind == "replay":
                found.setdefault(int(step), {}).setdefault(int(group), {})[key] = tensor
        for step in sorted(found):
            self.steps.append([found[step][group] for group in sorted(found[step])])


def pad_alike(groups: list[Group], padding: Mapping[str, float]) -> Group:
    """Stack groups whose prompts and completions have different lengths.

    Args:
        groups: with the same keys.
        padding: what to fill a key's tensors with; 0 where it says nothing.
    """
    out: Group = {}
    for key in groups[0]:
        parts = [group[key] for group in groups]
        if parts[0].ndim == 2:
            width = max(part.shape[1] for part in parts)
            value = padding.get(key, 0.0)
            sides = [(width - p.shape[1], 0) if key in _LEFT else (0, width - p.shape[1]) for p in parts]
            parts = [
                torch.nn.functional.pad(p, side, value=value) for p, side in zip(parts, sides, strict=True)
            ]
        out[key] = torch.cat(parts)
    return out
