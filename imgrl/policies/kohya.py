"""LoRA keys as ComfyUI and kohya's scripts name them.

SD3: ``lora_transformer_<path with underscores>``, the OneTrainer naming that ComfyUI reads. Flux: kohya's
``lora_unet_double_blocks_*`` of the original checkpoint, whose fused layers (qkv) get a block-diagonal LoRA.
Each layer has ``.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``; the update is alpha / rank * up @
down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from imgrl.errors import ExportError

__all__ = ["kohya_state_dict"]

_DOUBLE = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_MLP_RATIO = 4  # Flux: proj_mlp is four times as wide as the attention projections


def kohya_state_dict(factors: Mapping[str, Tensor], *, family: str, alpha: float) -> dict[str, Tensor]:
    """Translate ``<path>.lora_A.weight`` [r, in] and ``.lora_B.weight`` [out, r] (alpha not folded in)."""
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for key in factors:
        if key.endswith(".lora_A.weight"):
            path = key.removesuffix(".lora_A.weight")
            layers[path] = factors[key], factors[f"{path}.lora_B.weight"]
    return _flux(layers, alpha) if family == "flux" else _underscored(layers, alpha)


def _underscored(layers: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path, (down, up) in layers.items():
        state |= _entry("lora_transformer_" + path.replace(".", "_"), down, up, alpha)
    return state


def _entry(name: str, down: Tensor, up: Tensor, alpha: float) -> dict[str, Tensor]:
    return {
        f"{name}.lora_down.weight": down.contiguous(),
        f"{name}.lora_up.weight": up.contiguous(),
        f"{name}.alpha": torch.tensor(float(alpha)),
    }


def _flux(layers: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    done: set[str] = set()
    blocks = sorted(
        {match[0] for path in layers if (match := re.match(r"(single_)?transformer_blocks\.\d+", path))}
    )
    for block in blocks:
        kind, table = ("single", _SINGLE) if block.startswith("single_") else ("double", _DOUBLE)
        number = block.rsplit(".", 1)[1]
        for name, parts in table.items():
            paths = [f"{block}.{part}" for part in parts]
            present = [path for path in paths if path in layers]
            if present:
                done.update(present)
                down, up = _fused(paths, layers)
                # A fused layer has len(paths) times the rank, so alpha grows with it and the scale stays.
                state |= _entry(f"lora_unet_{kind}_blocks_{number}_{name}", down, up, alpha * len(paths))
    left = sorted(layers.keys() - done)
    if left:
        raise ExportError(
            f"The LoRA layer {left[0]} has no name in kohya's Flux format: train block layers only."
        )
    return state


def _fused(paths: list[str], layers: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One LoRA for layers stacked along their outputs: downs stacked, ups on the diagonal."""
    known = next(path for path in paths if path in layers)
    down, up = layers[known]
    unit = up.shape[0] // _width(known)
    downs, ups = [], []
    for path in paths:
        a, b = layers.get(path, (torch.zeros_like(down), up.new_zeros(unit * _width(path), up.shape[1])))
        downs.append(a)
        ups.append(b)
    return torch.cat(downs), torch.block_diag(*ups)


def _width(path: str) -> int:
    return _MLP_RATIO if path.endswith(".proj_mlp") else 1
