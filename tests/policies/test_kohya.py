"""Key names. Flux goes through diffusers' own kohya reader; its fused single-block layers need real widths.

For SD3 diffusers has no such reader: what is checked is the naming rule that ComfyUI applies to a module path
(``lora_transformer_`` and dots to underscores) and that alpha / rank * up @ down is the trained update.
"""

import pytest
import torch
from torch import Tensor

from imgrl.errors import ExportError
from imgrl.policies.kohya import kohya_state_dict

D = 3072
SINGLE = {"attn.to_q": D, "attn.to_k": D, "attn.to_v": D, "proj_mlp": 4 * D}
DOUBLE = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]
DOUBLE += ["attn.to_out.0", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj"]
DOUBLE += ["ff_context.net.2", "norm1.linear", "norm1_context.linear"]


def factors(sizes: dict[str, tuple[int, int]], rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    out: dict[str, Tensor] = {}
    for path, (rows, columns) in sizes.items():
        out[f"{path}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        out[f"{path}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return out


def read_by_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    from diffusers import FluxPipeline

    return FluxPipeline.lora_state_dict(dict(state))


def test_flux_round_trips_through_diffusers_reader() -> None:
    sizes = {f"transformer_blocks.3.{name}": (16, 8) for name in DOUBLE}
    sizes |= {f"single_transformer_blocks.12.{name}": (rows, 4) for name, rows in SINGLE.items()}
    sizes |= {f"single_transformer_blocks.12.{name}": (8, 4) for name in ("proj_out", "norm.linear")}
    given = factors(sizes)
    state = kohya_state_dict(given, family="flux", alpha=4.0)
    assert all(key.startswith(("lora_unet_double_blocks_3_", "lora_unet_single_blocks_12_")) for key in state)
    back = read_by_diffusers(state)
    assert len(back) == len(given)
    for path in sizes:
        a, b = (back[f"transformer.{path}.lora_{part}.weight"] for part in "AB")
        update = 4.0 / 2 * given[f"{path}.lora_B.weight"] @ given[f"{path}.lora_A.weight"]
        torch.testing.assert_close(b @ a, update)


def test_flux_layers_of_a_fused_group_may_be_missing() -> None:
    given = factors(
        {"single_transformer_blocks.0.proj_mlp": (4 * D, 4), "transformer_blocks.0.attn.to_k": (16, 8)}
    )
    back = read_by_diffusers(kohya_state_dict(given, family="flux", alpha=2.0))
    for path in ("single_transformer_blocks.0.proj_mlp", "transformer_blocks.0.attn.to_k"):
        a, b = (back[f"transformer.{path}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(b @ a, given[f"{path}.lora_B.weight"] @ given[f"{path}.lora_A.weight"])
    untrained = back["transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight"]
    assert untrained.shape == (D, 2) and not untrained.any()


def test_sd3_names_are_module_paths_with_underscores() -> None:
    path = "transformer_blocks.7.attn.to_out.0"
    given = factors({path: (16, 8), "transformer_blocks.7.attn.add_k_proj": (16, 8)})
    state = kohya_state_dict(given, family="sd3", alpha=4.0)
    name = "lora_transformer_transformer_blocks_7_attn_to_out_0"
    down, up, alpha = (state[f"{name}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
    assert len(state) == 6
    trained = 4.0 / 2 * given[f"{path}.lora_B.weight"] @ given[f"{path}.lora_A.weight"]
    torch.testing.assert_close(alpha / down.shape[0] * up @ down, trained)


def test_a_layer_without_a_name_is_refused() -> None:
    with pytest.raises(ExportError, match="x_embedder has no name"):
        kohya_state_dict(factors({"x_embedder": (4, 4)}), family="flux", alpha=1.0)
