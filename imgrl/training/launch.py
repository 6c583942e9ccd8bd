"""What a launcher asked for, and what of it copies of weights that are switched in place cannot go along with."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imgrl.errors import ConfigError

if TYPE_CHECKING:  # commands that answer at once know this file, too
    from imgrl.recipe_text import TextModel

__all__ = ["processes", "refuse_missing_vllm", "refuse_sharded_weights", "refuse_what_launchers_undo"]


def processes() -> int:
    """How many processes were launched together, by torchrun or accelerate."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_sharded_weights(environment: Mapping[str, str], *, command: str) -> None:
    """Refuse a launch under which a process holds only a part of the weights, in a way that copies cannot follow.

    Copies of language models are cut as FSDP2 cuts the weights. FSDP1 makes flat tensors of them, DeepSpeed's stage 3
    and Megatron keep them to themselves; image runs have whole copies only.

    Args:
        environment: as ``accelerate launch`` leaves it.
        command: what was launched; ``imgrl train`` has a data parallelism of its own and goes along with no DeepSpeed.

    Raises:
        ConfigError: for FSDP1, Megatron, DeepSpeed's stage 3 and sequences or layers that are split; for image runs
            for every kind of FSDP and DeepSpeed.
    """
    texts = command == "imgrl lm train"
    asked = _kinds_for_texts(environment) if texts else _kinds_for_images(environment)
    if not asked:
        return
    said = f"This launch shards the weights ({', '.join(sorted(asked))}), but {command} switches "
    if texts:
        raise ConfigError(
            f"{said}copies of them in place, which are cut as FSDP2 cuts them and in no other way: launch with "
            "accelerate's --use_fsdp --fsdp_version 2, plain data parallelism or DeepSpeed stage 1 or 2."
        )
    raise ConfigError(
        f"{said}whole copies of them in place: launch with plain data parallelism, and save memory with "
        "model.train=lora."
    )


def refuse_what_launchers_undo(environment: Mapping[str, str], model: TextModel) -> None:
    """Refuse a launch that would undo a setting of the recipe without a word.

    Past ``model.mask`` DeepSpeed at any stage puts an optimiser on flat weights of its own, and FSDP other parameters
    in the place of those that were masked; a LoRA's mask would hold under the former, which nobody has tried. PiSSA
    takes a part off the stored weights: FSDP has sharded them when a resumed run wants the part taken off that it began
    with.

    Args:
        environment: as ``accelerate launch`` leaves it.
        model: the recipe's.

    Raises:
        ConfigError: naming the key.
    """
    by = "DeepSpeed" if _deepspeed(environment) else "FSDP" if _fsdp(environment) else None
    if by is not None and model.mask is not None:
        raise ConfigError(
            f"This launch uses {by}, which model.mask does not go along with: launch with plain data parallelism, "
            "or leave the key out."
        )
    if by == "FSDP" and model.train == "lora" and model.lora.init == "pissa":
        raise ConfigError(
            "This launch uses FSDP, under which model.lora.init=pissa could not be resumed: launch with plain data "
            "parallelism, or choose init=gaussian."
        )
    if by == "FSDP" and model.train == "lora":
        from imgrl.training.text.models import is_adapter  # it knows transformers

        if not is_adapter(model.path):
            return
        raise ConfigError(
            f"This launch uses FSDP, under which a LoRA on top of the adapter {model.path} could not be written: merge "
            "that one into its model first, or launch with plain data parallelism."
        )


def refuse_missing_vllm() -> None:
    """Refuse to have vLLM generate where it cannot.

    Raises:
        ConfigError: if it is not installed, or there is no GPU.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "generation.vllm asks for vLLM, which is not installed; run `pip install vllm`, or leave the key out"
        )
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("generation.vllm needs a GPU, and there is none here; leave the key out")


def _kinds_for_images(environment: Mapping[str, str]) -> set[str]:
    kinds = {"FSDP": "FSDP", "MEGATRON_LM": "MEGATRON_LM", "DEEPSPEED": "DeepSpeed"}
    return {name for kind, name in kinds.items() if _uses(environment, kind)}


def _kinds_for_texts(environment: Mapping[str, str]) -> set[str]:
    asked = {"MEGATRON_LM"} if _uses(environment, "MEGATRON_LM") else set[str]()
    if _fsdp(environment) and environment.get("FSDP_VERSION", "1") != "2":
        asked.add("FSDP1")
    if _deepspeed(environment) and _zero_stage(environment) == "3":
        asked.add("DeepSpeed stage 3")
    if _uses(environment, "PARALLELISM_CONFIG"):
        axes = {"TP": "tensor parallelism", "CP": "context parallelism", "SP": "sequence parallelism"}
        asked |= {
            name
            for axis, name in axes.items()
            if environment.get(f"PARALLELISM_CONFIG_{axis}_SIZE", "1") != "1"
        }
    return asked


def _fsdp(environment: Mapping[str, str]) -> bool:
    return _uses(environment, "FSDP")


def _deepspeed(environment: Mapping[str, str]) -> bool:
    return _uses(environment, "DEEPSPEED")


def _uses(environment: Mapping[str, str], kind: str) -> bool:
    return environment.get(f"ACCELERATE_USE_{kind}", "").lower() == "true"


def _zero_stage(environment: Mapping[str, str]) -> str | None:
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file.lower() == "none":
        return environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    try:
        return str(json.loads(Path(file).read_text())["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # DeepSpeed itself has a word for it
