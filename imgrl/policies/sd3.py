"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from imgrl.policies.base import Policy
from imgrl.policies.lora import JOINT_ATTENTION
from imgrl.policies.zero_tokens import Repeats, fold, install, unfold

__all__ = ["SD3Policy"]


class SD3Policy(Policy):
    """SD3: unpacked latents, timestep 1000 sigma, classifier-free guidance.

    Without a T5 encoder the stock pipeline appends ``max_sequence_length`` zero tokens (256 by default), which can
    be computed as one (:meth:`fold_zero_tokens`). ``max_sequence_length=0`` leaves out T5 and zeros alike,
    which is another conditioning, so train and sample with the same number.
    """

    family: ClassVar[str] = "sd3"
    pipeline_class: ClassVar[str] = "StableDiffusion3Pipeline"
    default_length: ClassVar[int] = 256
    default_targets: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    _default_max_shift: ClassVar[float] = 1.16
    _repeats: Repeats | None = None

    @property
    def _channels(self) -> int:
        return self.transformer.config.in_channels

    @property
    def _patch(self) -> int:
        return self.transformer.config.patch_size

    @property
    def _default_latent_size(self) -> int:
        return self.transformer.config.sample_size

    def _encode_text(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            [prompt],
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        if self._repeats is None:
            return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        tokens, count = fold(embeds[0])
        return {
            "prompt_embeds": tokens[None],
            "pooled_prompt_embeds": pooled,
            "last_token_count": torch.tensor([count]),
        }

    def _forward(self, transformer: Any, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        embeds, count = cond["prompt_embeds"], 1
        if "last_token_count" in cond:
            count = int(
                cond["last_token_count"][0]
            )  # the same for every prompt: it fills what T5 leaves empty
        if self._repeats is not None and transformer is self.transformer:
            self._repeats.count = count
        elif count > 1:
            embeds = unfold(embeds, count)
        return transformer(
            hidden_states=x,
            timestep=sigma * 1000,
            encoder_hidden_states=embeds,
            pooled_projections=cond["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

    def fold_zero_tokens(self) -> None:
        """Compute equal trailing text tokens once from now on: the same result up to rounding, several times faster.

        It acts where stock diffusers puts 256 zero tokens in the place of a missing T5.
        """
        self._repeats = install(self.transformer)

    def _embedding_identity(self) -> dict[str, str]:
        return super()._embedding_identity() | {"folded": str(self._repeats is not None)}

    def _grid(self, steps: int) -> dict[str, Any]:
        return {"num_inference_steps": steps}

    @property
    def _unused_components(self) -> tuple[str, ...]:
        return ("text_encoder_3", "tokenizer_3") if self.max_sequence_length == 0 else ()
