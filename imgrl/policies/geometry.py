"""Sizes and noise levels of a model: what follows from its configuration alone."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from imgrl.errors import ConfigError

__all__ = ["Geometry"]


class Geometry(ABC):
    """Latent sizes, time shift and sampling grid, equal to the stock pipeline's."""

    transformer: Any
    vae: Any
    scheduler: Any
    device: torch.device

    _default_max_shift: ClassVar[float] = 1.15

    @property
    def image_multiple(self) -> int:
        """Height and width in pixels must be multiples of this."""
        return self._vae_factor * self._patch

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of ``height`` x ``width`` pixels."""
        height, width = height or self.default_size, width or self.default_size
        if height % self.image_multiple or width % self.image_multiple:
            raise ConfigError(
                f"Height and width must be multiples of {self.image_multiple} pixels for this model, "
                f"got {height} x {width}."
            )
        return self._channels, height // self._vae_factor, width // self._vae_factor

    @property
    def default_size(self) -> int:
        """Height and width in pixels that the stock pipeline uses when none is given."""
        return self._default_latent_size * self._vae_factor

    @property
    def shift(self) -> float:
        """Time shift s of the scheduler at the default size: sigma = s u / (1 + (s - 1) u)."""
        return self.shift_at()

    def shift_at(self, height: int | None = None, width: int | None = None) -> float:
        """Time shift at an image size; it depends on the size only where the scheduler shifts dynamically."""
        if not self.scheduler.config.use_dynamic_shifting:
            return float(self.scheduler.shift)
        mu = torch.tensor(self._mu(*self.latent_shape(height, width)[1:]))
        return float(mu.exp() if self.scheduler.config.time_shift_type == "exponential" else mu)

    def sigmas(self, steps: int, height: int | None = None, width: int | None = None) -> Tensor:
        """The stock pipeline's noise levels for ``steps`` steps: float32 [steps + 1], from 1 to 0."""
        if steps < 1:
            raise ConfigError(f"Sampling needs at least 1 step, got {steps}.")
        _, h, w = self.latent_shape(height, width)
        scheduler = copy.deepcopy(self.scheduler)
        dynamic = {"mu": self._mu(h, w)} if scheduler.config.use_dynamic_shifting else {}
        scheduler.set_timesteps(**self._grid(steps), **dynamic)
        return scheduler.sigmas.to(self.device)

    def _mu(self, h: int, w: int) -> float:
        """Dynamic shift: linear in the number of image tokens (the scheduler's four numbers)."""
        config = self.scheduler.config
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        base, top = config.get("base_shift", 0.5), config.get("max_shift", self._default_max_shift)
        slope = (top - base) / (high - low)
        return (h // self._patch) * (w // self._patch) * slope + (base - slope * low)

    @property
    @abstractmethod
    def _channels(self) -> int:
        """Latent channels C."""

    @property
    @abstractmethod
    def _patch(self) -> int:
        """Side of the square of latent cells that makes one image token."""

    @property
    @abstractmethod
    def _default_latent_size(self) -> int:
        """Latent height and width of the stock pipeline's default image."""

    @abstractmethod
    def _grid(self, steps: int) -> dict[str, Any]:
        """Arguments with which the stock pipeline calls the scheduler's ``set_timesteps``."""

    @property
    def _vae_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)
