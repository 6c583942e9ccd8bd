"""The face every text-to-image model shows to the rest of imgrl.

One convention: sigma 1 is noise and 0 is data, velocity = noise - data, latents are unpacked float32
[n, C, h, w].
A family (SD3, Flux) supplies the few methods at the end of :class:`Policy`; everything else is common.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from imgrl import flow
from imgrl.errors import ConfigError
from imgrl.policies.adapters import NamedWeights
from imgrl.policies.embeddings import EmbeddingTable, encoder_revision, select
from imgrl.policies.geometry import Geometry
from imgrl.policies.stock import open_stock_pipeline
from imgrl.types import Conditioning

if TYPE_CHECKING:
    from imgrl.policies.export import Manifest

__all__ = ["Policy"]


class Policy(Geometry):
    """A text-to-image flow model: encode, initial_noise, velocity, sample, decode, export.

    Built by :func:`imgrl.policies.load_policy`. The encoders load on the first prompt that no cache knows.
    """

    family: ClassVar[str]
    pipeline_class: ClassVar[str]
    default_targets: ClassVar[tuple[str, ...]]
    default_length: ClassVar[int]

    weights: NamedWeights
    vae_dtype: torch.dtype = torch.float32
    """Arithmetic of :meth:`decode`."""

    def __init__(
        self,
        folder: Path,
        *,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        dtype: torch.dtype,
        device: torch.device,
        max_sequence_length: int | None = None,
        embedding_folder: Path | None = None,
    ) -> None:
        self.folder = folder
        self.transformer = transformer
        self.vae = vae
        self.scheduler = scheduler
        self.dtype = dtype
        self.device = device
        self.max_sequence_length = self.default_length if max_sequence_length is None else max_sequence_length
        self._encoders: Any = None
        self._embeddings = EmbeddingTable(self._encode_one, self._embedding_identity, embedding_folder)
        self._check_length()

    # ---------------------------------------------------------------- text

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text embeddings of ``prompts``, one row each, from the cache where it knows them."""
        return self._embeddings(list(prompts), self.device)

    def drop_encoders(self) -> None:
        """Free the text encoders. A prompt that is not cached yet loads them again from the model folder."""
        self.encode([""])  # guidance needs the empty prompt, so keep it
        self._encoders = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _encode_one(self, prompt: str) -> dict[str, Tensor]:
        if self._encoders is None:
            self._encoders = self._load_encoders()
        return {name: tensor[0] for name, tensor in self._encode_text(self._encoders, prompt).items()}

    def _load_encoders(self) -> Any:
        unused = dict.fromkeys(self._unused_components)
        pipeline = open_stock_pipeline(
            self.folder, dtype=self.dtype, transformer=self.transformer, vae=None, **unused
        )
        for name, part in pipeline.components.items():
            if name.startswith("text_encoder") and part is not None:
                part.to(self.device).requires_grad_(False)
        return pipeline

    @property
    def _unused_components(self) -> tuple[str, ...]:
        """Components of the folder that encoding can do without."""
        return ()

    def _embedding_identity(self) -> dict[str, str]:
        return {
            "family": self.family,
            "encoder": encoder_revision(self.folder),
            "dtype": str(self.dtype),
            "length": str(self.max_sequence_length),
        }

    # ------------------------------------------------------------- sampling

    def initial_noise(
        self, seeds: Sequence[int], height: int | None = None, width: int | None = None
    ) -> Tensor:
        """Standard normal latents float32 [n, C, h, w]; each depends on its own seed alone.

        Drawn on the CPU, so a seed means the same noise on every device, batch and rank.
        """
        return self.seeded_noise(seeds, 1, height, width)[0]

    def seeded_noise(
        self, seeds: Sequence[int], draws: int, height: int | None = None, width: int | None = None
    ) -> tuple[Tensor, ...]:
        """``draws`` independent noises like :meth:`initial_noise`, which is the first of them."""
        shape = self.latent_shape(height, width)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        return tuple(
            torch.stack([torch.randn(shape, generator=own) for own in generators]).to(self.device)
            for _ in range(draws)
        )

    def velocity(
        self,
        x: Tensor,
        sigma: Tensor | float,
        cond: Conditioning,
        *,
        weights: str = "current",
        guidance: float = 1.0,
        negative: Conditioning | None = None,
    ) -> Tensor:
        """Predicted velocity noise - data, float32 [n, C, h, w].

        Args:
            x: noisy latents [n, C, h, w].
            sigma: noise level, one number or [n].
            cond: text embeddings of the n prompts.
            weights: which named weights; every name but "current" runs without gradients.
            guidance: classifier-free guidance scale; 1 runs one forward, above 1 one forward of 2n rows.
            negative: embeddings guided away from, [n] or one row for all; default: the empty prompt.

        Raises:
            ValueError: shapes do not agree, or guidance is below 1.
        """
        self._check_velocity(x, cond, guidance)
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
        level = level.expand(x.shape[0]) if level.ndim == 0 else level
        if level.shape != x.shape[:1]:
            raise ValueError(
                f"sigma must be one number or one per sample [{x.shape[0]}], got {list(level.shape)}."
            )
        with self.weights.use(weights):
            if guidance == 1.0:
                return self.predict(self.transformer, x, level, cond)
            both = _joined(self.encode([""]) if negative is None else negative, cond, x.shape[0])
            doubled = self.predict(self.transformer, torch.cat([x, x]), torch.cat([level, level]), both)
            unconditional, conditional = doubled.chunk(2)
            return flow.guided(conditional, unconditional, scale=guidance)

    def predict(self, transformer: Any, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """One forward of ``transformer`` (any of this family) in this policy's precision, as float32."""
        # No autocast cache: a cast made without gradients must not be reused in a forward with them.
        lowered = torch.autocast(
            x.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False
        )
        with lowered:
            return self._forward(transformer, x, sigma, cond.tensors).float()

    @torch.no_grad()
    def sample(
        self,
        cond: Conditioning,
        seeds: Sequence[int],
        *,
        steps: int,
        weights: str = "sampling",
        guidance: float = 1.0,
        negative: Conditioning | None = None,
        solver: str = "euler",
        height: int | None = None,
        width: int | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """Clean latents float32 [n, C, h, w] by the probability-flow ODE, one per (prompt row, seed).

        ``batch`` bounds how many are sampled together; it changes results by rounding only.
        """
        count = _one_seed_each(cond, seeds)
        if guidance > 1.0 and negative is None:
            negative = self.encode([""])
        noise = self.initial_noise(seeds, height, width)
        sigmas = self.sigmas(steps, height, width)
        parts = []
        with self.weights.use(weights):
            for rows in _slices(count, batch):
                part, away = select(cond, rows), negative
                if negative is not None and _rows(negative) > 1:
                    away = select(negative, rows)
                field = self._field(part, away, weights, guidance)
                parts.append(flow.sample_ode(field, noise[rows], sigmas, solver=solver))  # pyright: ignore[reportArgumentType]
        return torch.cat(parts)

    def sample_path(
        self,
        cond: Conditioning,
        seeds: Sequence[int],
        *,
        sampler: flow.StochasticSampler,
        steps: int,
        start: int,
        weights: str = "sampling",
        guidance: float = 1.0,
        keep_mean: bool = False,
        height: int | None = None,
        width: int | None = None,
    ) -> flow.Path:
        """Sample with random steps from step ``start`` on; an image's random numbers come from its seed alone."""
        _one_seed_each(cond, seeds)
        count = sampler.count(steps)
        drawn = self.seeded_noise(seeds, 1 + count, height, width)
        negative = self.encode([""]) if guidance > 1.0 else None
        with self.weights.use(weights):
            return flow.sample_path(
                self._field(cond, negative, weights, guidance),
                drawn[0],
                self.sigmas(steps, height, width),
                sampler,
                start=start,
                noises=drawn[1:],
                keep_mean=keep_mean,
            )

    def _field(
        self, cond: Conditioning, negative: Conditioning | None, weights: str, guidance: float
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The velocity as a function of state and noise level."""

        def field(x: Tensor, sigma: Tensor) -> Tensor:
            return self.velocity(x, sigma, cond, weights=weights, guidance=guidance, negative=negative)

        return field

    # --------------------------------------------------------------- pixels

    @torch.no_grad()
    def decode(self, latents: Tensor, *, batch: int | None = None) -> Tensor:
        """Images float32 [n, 3, H, W] in [0, 1] of clean latents, ``batch`` at a time."""
        scale, offset = self._vae_scale
        images = []
        low = self.vae_dtype != torch.float32
        with torch.autocast(self.device.type, self.vae_dtype if low else None, enabled=low):
            for rows in _slices(latents.shape[0], batch):
                pixels = self.vae.decode(
                    latents[rows].to(self.device).float() / scale + offset, return_dict=False
                )[0]
                images.append((pixels.float() * 0.5 + 0.5).clamp(0, 1))
        return torch.cat(images)

    @torch.no_grad()
    def to_latents(self, images: Tensor, *, batch: int | None = None) -> Tensor:
        """Clean latents of images [n, 3, H, W] in [0, 1], the mean of the VAE's posterior."""
        scale, offset = self._vae_scale
        latents = []
        with torch.autocast(self.device.type, enabled=False):
            for rows in _slices(images.shape[0], batch):
                posterior = self.vae.encode(images[rows].float().to(self.device) * 2 - 1).latent_dist
                latents.append((posterior.mode() - offset) * scale)
        return torch.cat(latents)

    def export(self, folder: str | Path, *, weights: str = "current", verify: bool = True) -> Manifest:
        """Write ``weights`` for stock diffusers (checked in a fresh pipeline) and, a LoRA, for ComfyUI.

        See :func:`imgrl.policies.export.export`.
        """
        from imgrl.policies.export import export

        return export(self, Path(folder), weights=weights, verify=verify)

    # ------------------------------------------------------ what a family is

    @abstractmethod
    def _encode_text(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """The stock pipeline's embeddings of one prompt, each [1, ...]."""

    @abstractmethod
    def _forward(self, transformer: Any, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """The transformer's velocity [n, C, h, w]; sigma [n]."""

    # -------------------------------------------------------------- checks

    @property
    def _vae_scale(self) -> tuple[float, float]:
        return self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0

    def _check_length(self) -> None:
        if not 0 <= self.max_sequence_length <= 512:
            raise ConfigError(
                f"max_sequence_length must lie between 0 and 512, got {self.max_sequence_length}."
            )

    def _check_velocity(self, x: Tensor, cond: Conditioning, guidance: float) -> None:
        if x.ndim != 4 or x.shape[1] != self._channels:
            raise ValueError(f"velocity needs latents [n, {self._channels}, h, w], got {list(x.shape)}.")
        if _rows(cond) != x.shape[0]:
            raise ValueError(f"velocity got {x.shape[0]} latents but embeddings of {_rows(cond)} prompts.")
        if not guidance >= 1.0:
            raise ValueError(f"guidance must be at least 1 (1 = no guidance), got {guidance}.")


def _rows(cond: Conditioning) -> int:
    return next(iter(cond.tensors.values())).shape[0]


def _one_seed_each(cond: Conditioning, seeds: Sequence[int]) -> int:
    count = _rows(cond)
    if len(seeds) != count:
        raise ValueError(f"sample needs one seed per prompt: got {len(seeds)} seeds for {count} prompts.")
    return count


def _slices(count: int, batch: int | None) -> list[slice]:
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}.")
    step = batch or max(count, 1)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _joined(negative: Conditioning, cond: Conditioning, count: int) -> Conditioning:
    rows = _rows(negative)
    if rows not in (1, count):
        raise ValueError(f"negative embeddings must have 1 or {count} rows, got {rows}.")
    tensors = {k: torch.cat([negative.tensors[k].expand_as(v), v]) for k, v in cond.tensors.items()}
    return Conditioning(tensors=tensors)
