"""From a recipe to TRL's argument objects: the only place that knows their names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imgrl.errors import ConfigError
from imgrl.objectives.text.base import passes_of
from imgrl.recipe_text import VLLM, TextModel, TextRecipe
from imgrl.training.launch import processes

__all__ = [
    "online_arguments",
    "peft_config",
    "preference_arguments",
    "supervised_arguments",
    "tracked_as",
]


def online_arguments(recipe: TextRecipe, folder: Path, *, weights: list[float]) -> Any:
    """TRL's ``GRPOConfig``: rollouts and advantages are TRL's, its own loss and reference are off."""
    from trl import GRPOConfig

    batch, generation = recipe.batch, recipe.generation
    trained = batch.groups * batch.group_size
    return GRPOConfig(
        **_common(recipe, folder, sequences=trained, generated=batch.groups * batch.sampled),
        **({} if generation.vllm is None else _vllm(generation.vllm)),
        num_generations=batch.sampled,
        steps_per_generation=_accumulation(recipe, trained),
        num_iterations=passes_of(recipe.objective),
        max_completion_length=generation.max_tokens,
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=0,
        scale_rewards=recipe.scale_rewards,
        reward_weights=weights,
        beta=0.0,  # the anchors are ours
        shuffle_dataset=True,
    )


def supervised_arguments(recipe: TextRecipe, folder: Path) -> Any:
    """TRL's ``SFTConfig``: only the completion carries loss."""
    from trl import SFTConfig

    return SFTConfig(
        **_common(recipe, folder, sequences=recipe.batch.groups),
        max_length=recipe.data.max_tokens,
        completion_only_loss=True,
        packing=False,
        dataset_num_proc=None,
    )


def preference_arguments(recipe: TextRecipe, folder: Path) -> Any:
    """TRL's ``DPOConfig``: its data handling, without its loss and its reference."""
    from trl import DPOConfig

    return DPOConfig(
        **_common(recipe, folder, sequences=recipe.batch.groups), max_length=recipe.data.max_tokens
    )


def peft_config(model: TextModel, network: Any) -> Any:
    """The LoRA of a recipe for a network, or None for full fine-tuning.

    Raises:
        ConfigError: if it has no layer of a name that the recipe targets.
    """
    if model.train == "full":
        return None
    from peft import LoraConfig

    _check_targets(model.lora.targets, network)
    targets: Any = model.lora.targets
    if targets == "default":
        targets = None  # peft's own list for the model's family
    elif not isinstance(targets, str):
        targets = list(targets)
    return LoraConfig(
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,  # type: ignore[arg-type]  # peft takes any number
        target_modules=targets,
        init_lora_weights=True if model.lora.init == "kaiming" else model.lora.init,  # True is Kaiming
        task_type="CAUSAL_LM",
    )


def _check_targets(targets: Sequence[str] | str, network: Any) -> None:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    kind = getattr(network.config, "model_type", "?")
    if targets == "default" and kind not in USUAL:
        raise ConfigError(
            f"model.lora.targets=default has no list for the model type {kind}; give all-linear, or names of layers"
        )
    if isinstance(targets, str):
        return
    paths = [name for name, _ in network.named_modules()]
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            kinds = ("Linear", "Conv1D", "Embedding")
            there = {n.rpartition(".")[2] for n, m in network.named_modules() if type(m).__name__ in kinds}
            raise ConfigError(
                f"model.lora.targets names {target!r}, but the model has no such layer; those that can have a LoRA are "
                f"called {', '.join(sorted(there))}"
            )


@contextmanager
def tracked_as(recipe: TextRecipe, folder: Path) -> Iterator[None]:
    """Name the project to those of TRL's trackers that ask the environment: when built, and when training begins.

    As in image runs, TensorBoard's files lie in a folder of the project's name in the run folder.
    """
    project = recipe.tracking.project
    names = {"WANDB_PROJECT": project, "TENSORBOARD_LOGGING_DIR": str(folder / project)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _vllm(settings: VLLM) -> dict[str, Any]:
    own = {
        "vllm_server_base_url": settings.url,
        "vllm_gpu_memory_utilization": settings.memory,
        "vllm_tensor_parallel_size": settings.tensor_parallel,
    }
    return {
        "use_vllm": True,
        "vllm_mode": settings.mode,
        "vllm_importance_sampling_correction": False,  # its weights are for TRL's own loss
    } | {name: value for name, value in own.items() if value is not None}


def _share(count: int) -> int:
    """Of so many sequences, those of one process."""
    return count // processes()


def _accumulation(recipe: TextRecipe, sequences: int) -> int:
    own = _share(sequences)
    return own // (recipe.batch.micro or own)


def _common(
    recipe: TextRecipe, folder: Path, *, sequences: int, generated: int | None = None
) -> dict[str, Any]:
    """``sequences`` are trained on a step; TRL counts those ``generated`` for it, if there are more."""
    import torch

    accumulation = _accumulation(recipe, sequences)
    optimizer = recipe.optimizer
    every = recipe.checkpoint.every
    return {
        "output_dir": str(folder / "checkpoints"),
        "seed": recipe.run.seed,
        "max_steps": recipe.run.steps,
        "per_device_train_batch_size": _share(generated or sequences) // accumulation,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": optimizer.lr,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.clip or 0.0,
        "bf16": recipe.model.dtype == "bf16",
        "fp16": False,
        "gradient_checkpointing": recipe.model.gradient_checkpointing,
        "logging_steps": 1,
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,  # it would log 0 for a loss that is not finite
        "save_strategy": "steps" if every else "no",
        "save_steps": every or 1,
        "save_total_limit": None,  # older checkpoints go when the anchors of a new one are written, too
        "eval_strategy": "no",
        "report_to": list(recipe.tracking.trackers),
        "project": recipe.tracking.project,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "remove_unused_columns": False,
        "ddp_broadcast_buffers": False,  # they are equal everywhere; a LoRA's masks are large
    }
