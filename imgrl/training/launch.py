"""What a launcher asked for, and what of it copies of weights that are switched in place cannot go along with."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path

from imgrl.errors import ConfigError

__all__ = ["processes", "refuse_mask_under_deepspeed", "refuse_missing_vllm", "refuse_sharded_weights"]


def processes() -> int:
    """How many processes were launched together, by torchrun or accelerate."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_sharded_weights(environment: Mapping[str, str], *, command: str) -> None:
    """Refuse a launch under which a process holds only a part of the weights.

    Anchors are whole tensors that change places with the trained ones; sharded, they would be those of nothing.

    Args:
        environment: as ``accelerate launch`` leaves it.
        command: what was launched; ``imgrl train`` has a data parallelism of its own and goes along with no DeepSpeed.

    Raises:
        ConfigError: for FSDP, Megatron and DeepSpeed's stage 3.
    """
    asked = {kind for kind in ("FSDP", "MEGATRON_LM") if environment.get(f"ACCELERATE_USE_{kind}") == "true"}
    texts = command == "imgrl lm train"
    if _deepspeed(environment) and not texts:
        asked.add("DeepSpeed")
    elif _deepspeed(environment) and _zero_stage(environment) == "3":
        asked.add("DeepSpeed stage 3")
    if asked:
        raise ConfigError(
            f"This launch shards the weights ({', '.join(sorted(asked))}), but {command} switches whole copies of "
            f"them in place: launch with plain data parallelism{' or DeepSpeed stage 1 or 2' if texts else ''}, and "
            "save memory with model.train=lora."
        )


def refuse_mask_under_deepspeed(environment: Mapping[str, str]) -> None:
    """Refuse a launch whose optimiser would train the entries that ``model.mask`` leaves out.

    Raises:
        ConfigError: for DeepSpeed at any stage: it puts an optimiser on flat weights of its own, past the mask.
    """
    if _deepspeed(environment):
        raise ConfigError(
            "This launch uses DeepSpeed, whose optimiser does not see model.mask: launch with plain data parallelism, "
            "or leave the key out."
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


def _deepspeed(environment: Mapping[str, str]) -> bool:
    return environment.get("ACCELERATE_USE_DEEPSPEED") == "true"


def _zero_stage(environment: Mapping[str, str]) -> str | None:
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file.lower() == "none":
        return environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    try:
        return str(json.loads(Path(file).read_text())["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # DeepSpeed itself has a word for it
