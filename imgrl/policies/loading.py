"""Loading a policy from a diffusers folder, with every foreseeable fault named before weights are read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from imgrl.analysis.masks import MaskKind
from imgrl.errors import ConfigError, ModelError
from imgrl.policies.adapters import FixedWeights, FullWeights, NamedWeights
from imgrl.policies.base import Policy
from imgrl.policies.flux import FluxPolicy
from imgrl.policies.lora import LoraSpec, LoraWeights, target_modules
from imgrl.policies.sd3 import SD3Policy
from imgrl.policies.stock import precision

__all__ = ["attach_weights", "blueprint", "inspect_folder", "load_policy", "local_folder"]

_FAMILIES: dict[str, type[Policy]] = {kind.pipeline_class: kind for kind in (SD3Policy, FluxPolicy)}
_TRANSFORMERS = {"sd3": "SD3Transformer2DModel", "flux": "FluxTransformer2DModel"}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WEIGHTLESS = ("scheduler", "tokenizer", "feature_extractor")


def load_policy(
    path_or_name: str | Path,
    *,
    train: Literal["lora", "full", "none"] = "lora",
    lora: LoraSpec | None = None,
    mask: MaskKind | None = None,
    mask_seed: int = 0,
    names: Sequence[str] = (),
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    vae_dtype: Literal["fp32", "bf16"] = "fp32",
    device: str | torch.device = "cpu",
    max_sequence_length: int | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    embedding_folder: str | Path | None = None,
    distilled_guidance: float | None = None,
    fold_zero_tokens: bool = False,
) -> Policy:
    """Load an SD3 or Flux model as a policy.

    Args:
        path_or_name: a diffusers pipeline folder, or the name of one on the Hugging Face hub.
        train: "lora" trains adapters over frozen weights, "full" the whole transformer, "none" nothing.
        lora: size and place of the adapters; None is the published setting.
        mask: entries of each matrix that adapters may change; full fine-tuning masks its optimiser instead, see
            :class:`imgrl.analysis.masks.MaskedUpdate`.
        mask_seed: of a random mask.
        names: copies to create beside "current", such as "old"; ``weights.add`` makes more later.
        dtype: precision of the transformer's forward and of the encoders; what trains and the VAE's weights: float32.
        vae_dtype: precision of the VAE's arithmetic when it decodes.
        device: where everything runs.
        max_sequence_length: T5 tokens, or SD3's zero tokens when it has no T5; None is the stock number.
        gradient_checkpointing: trade a second forward for memory.
        compile: compile each transformer block in place with torch.compile.
        embedding_folder: keep text embeddings on disk there.
        distilled_guidance: Flux.1-dev's embedded guidance; None is 3.5.
        fold_zero_tokens: SD3 without T5: compute the 256 equal zero tokens as one, several times faster and equal up to
            rounding; False repeats stock diffusers' arithmetic bit for bit.

    Raises:
        ModelError: the folder is missing, incomplete, or of another family.
        ConfigError: an option does not fit the model.
    """
    import diffusers

    _check_choice("train", train, ("lora", "full", "none"))
    _check_choice("dtype", dtype, tuple(_DTYPES))
    _check_choice("vae_dtype", vae_dtype, ("fp32", "bf16"))
    folder = _find(path_or_name)
    kind = inspect_folder(folder)
    forward, place = _DTYPES[dtype], torch.device(device)
    master = torch.float32 if train == "full" else forward
    network: Any = getattr(diffusers, _TRANSFORMERS[kind.family]).from_pretrained(
        folder, subfolder="transformer", **precision(master), use_safetensors=True
    )
    vae: Any = diffusers.AutoencoderKL.from_pretrained(
        folder, subfolder="vae", **precision(torch.float32), use_safetensors=True
    )
    policy = kind(
        folder,
        transformer=network.to(place).eval(),
        vae=vae.to(place).eval().requires_grad_(False),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
        dtype=forward,
        device=place,
        max_sequence_length=max_sequence_length,
        embedding_folder=None if embedding_folder is None else Path(embedding_folder),
    )
    policy.vae_dtype = _DTYPES[vae_dtype]
    if distilled_guidance is not None:
        _set_distilled_guidance(policy, distilled_guidance)
    if fold_zero_tokens and isinstance(policy, SD3Policy):
        policy.fold_zero_tokens()
    policy.weights = attach_weights(policy, train, lora, names, mask=mask, mask_seed=mask_seed)
    if gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if compile:
        compile_blocks(network)
    return policy


def blueprint(
    folder: Path,
    *,
    lora: LoraSpec | None = None,
    max_sequence_length: int | None = None,
    distilled_guidance: float | None = None,
) -> Policy:
    """A policy of ``folder``'s configuration without memory for weights: it answers for sizes and names only.

    Args:
        folder: a diffusers pipeline folder.
        lora: adapters whose targets must exist; None checks none.
        max_sequence_length: as for :func:`load_policy`.
        distilled_guidance: as for :func:`load_policy`.

    Raises:
        ModelError: the folder is incomplete or of another family.
        ConfigError: an option does not fit the model.
    """
    import diffusers

    kind = inspect_folder(folder)
    network: Any = getattr(diffusers, _TRANSFORMERS[kind.family])
    with torch.device("meta"):
        transformer = network.from_config(network.load_config(folder, subfolder="transformer"))
        autoencoder: Any = diffusers.AutoencoderKL
        vae = autoencoder.from_config(autoencoder.load_config(folder, subfolder="vae"))
    policy = kind(
        folder,
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_sequence_length=max_sequence_length,
    )
    if distilled_guidance is not None:
        _set_distilled_guidance(policy, distilled_guidance)
    if lora is not None:
        target_modules(transformer, lora.targets, kind.default_targets)
    return policy


def attach_weights(
    policy: Policy,
    train: str,
    lora: LoraSpec | None,
    names: Sequence[str],
    *,
    mask: MaskKind | None = None,
    mask_seed: int = 0,
) -> NamedWeights:
    """Named weights for a policy whose transformer is in place: adapters, parameter sets, or none."""
    if train == "none":
        return FixedWeights(policy.transformer)
    if train == "full":
        return FullWeights(policy.transformer, names)
    spec = lora or LoraSpec()
    paths = target_modules(policy.transformer, spec.targets, policy.default_targets)
    copies = [name for name in names if name != "frozen"]
    return LoraWeights(policy.transformer, spec, paths, copies, mask=mask, mask_seed=mask_seed)


def _set_distilled_guidance(policy: Policy, value: float) -> None:
    if not isinstance(policy, FluxPolicy) or not policy.transformer.config.guidance_embeds:
        raise ConfigError(
            "distilled_guidance only fits Flux models with a guidance embedding (Flux.1-dev); leave it out."
        )
    policy.distilled_guidance = value


def compile_blocks(network: Any, **options: Any) -> None:
    """Compile every transformer block in place: seconds instead of minutes, and parameter names stay.

    Each named weight and each gradient mode is a variant of its own, so dynamo's recompile limit is raised.
    """
    import torch._dynamo as dynamo

    # torch 2.4 and 2.5 have it under its older name.
    limit = "recompile_limit" if hasattr(dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(dynamo.config, limit, max(getattr(dynamo.config, limit), 64))
    for blocks in (network.transformer_blocks, getattr(network, "single_transformer_blocks", ())):
        for block in blocks:
            block.compile(**options)


def inspect_folder(folder: Path) -> type[Policy]:
    """The policy class for a diffusers folder, after checking that every file it needs is there.

    Raises:
        ModelError: in one sentence, what is missing or unsupported.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(f"{folder} has no model_index.json: give the folder of a diffusers pipeline.")
    try:
        parts = json.loads(index.read_text())
        name = parts.get("_class_name")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ModelError(
            f"{index} is not valid JSON ({error}): download or save the pipeline again."
        ) from None
    if name not in _FAMILIES:
        raise ModelError(f"{folder} holds a {name}, but imgrl trains {' and '.join(_FAMILIES)}.")
    for part in ("transformer", "vae", "scheduler"):
        if _absent(parts.get(part)):
            raise ModelError(f"{index} names no {part}: a trainable pipeline needs one.")
    if parts["scheduler"][1] != "FlowMatchEulerDiscreteScheduler":
        raise ModelError(
            f"{folder} uses {parts['scheduler'][1]}, but imgrl needs a FlowMatchEulerDiscreteScheduler."
        )
    for part, value in parts.items():
        if not part.startswith("_") and not _absent(value):
            _check_part(folder, part)
    return _FAMILIES[name]


def _absent(entry: Any) -> bool:
    return not isinstance(entry, list) or entry[1] is None


def _check_part(folder: Path, part: str) -> None:
    place = folder / part
    if not any(place.glob("*config.json")):
        raise ModelError(
            f"{folder} is incomplete: {part}/ or its configuration file is missing; download it again."
        )
    if part.startswith(_WEIGHTLESS):
        return
    needed = {
        file
        for index in place.glob("*.safetensors.index.json")
        for file in json.loads(index.read_text()).get("weight_map", {}).values()
    }
    missing = sorted(file for file in needed if not (place / file).is_file())
    if missing or not any(place.glob("*.safetensors")):
        raise ModelError(
            f"{folder} is incomplete: {part}/{missing[0] if missing else '*.safetensors'} is missing; "
            "download it again."
        )


def _check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        *others, last = (f"'{choice}'" for choice in choices)
        raise ConfigError(f"{name} must be {', '.join(others)} or {last}, got '{given}'.")


def local_folder(path_or_name: str | Path) -> Path | None:
    """The folder, or None for what reads like a hub name.

    Raises:
        ModelError: it is neither.
    """
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{path} is a file, not a folder: give the folder of a diffusers pipeline.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_name)):
        raise ModelError(
            f"{path} does not exist: give the folder of a diffusers pipeline or a hub name like 'org/model'."
        )
    return None


def _find(path_or_name: str | Path) -> Path:
    if (folder := local_folder(path_or_name)) is not None:
        return folder
    from diffusers import DiffusionPipeline

    try:
        return Path(str(DiffusionPipeline.download(str(path_or_name))))
    except Exception as error:  # the hub client raises many kinds; all mean that there is no model
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"'{path_or_name}' is no folder here and could not be downloaded: {reason}"
        ) from None
