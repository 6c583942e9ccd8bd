"""Writing trained weights in the forms that other programs load, and proving that they do.

A LoRA file without alpha is read by diffusers with scale 1, so alpha / rank is folded into B. Every export is
opened again in a fresh stock pipeline and must give the same velocity before it replaces an older one; only
where memory does not suffice for that, the file is kept and the manifest says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgrl.errors import ExportError, ModelError
from imgrl.policies.base import Policy
from imgrl.policies.kohya import kohya_state_dict
from imgrl.policies.lora import LoraWeights
from imgrl.policies.stock import open_stock_pipeline, quiet
from imgrl.types import Conditioning

__all__ = ["COMFYUI_FILE", "LORA_FILE", "MANIFEST_FILE", "Manifest", "export", "load_lora"]

LORA_FILE = "pytorch_lora_weights.safetensors"
COMFYUI_FILE = "comfyui_lora.safetensors"
MANIFEST_FILE = "export.json"
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_WEIGHT_TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was exported and how well a fresh stock pipeline reproduces it; kept beside it as export.json."""

    kind: str
    """"lora" or "full"."""
    family: str
    base_model: str
    """Name of the folder of the base model."""
    weights: str
    """Which named weights were written."""
    files: tuple[str, ...]
    dtype: str
    """Precision of the velocities compared."""
    rank: int | None = None
    alpha: float | None = None
    layers: int | None = None
    """LoRA layers that the fresh pipeline loaded: all of them, or the export fails."""
    velocity_error: float | None = None
    """max |v_stock - v_ours| / max |v_ours|; None if not verified."""
    unverified: str | None = None
    """Why it was not verified though that was asked for: the memory did not suffice."""
    weight_error: float | None = None
    """Largest relative difference of a LoRA factor after loading; None if not verified or not a LoRA."""
    velocity_change: float | None = None
    """max |v_ours - v_frozen| / max |v_ours|: how much was learned, to read the error against."""


def export(policy: Policy, folder: Path, *, weights: str = "current", verify: bool = True) -> Manifest:
    """Write the named ``weights`` to ``folder``; files of an earlier export there are replaced.

    LoRA: ``pytorch_lora_weights.safetensors`` for diffusers (verified) and ``comfyui_lora.safetensors``. Full
    fine-tuning, and a LoRA under a mask: a whole pipeline folder. Both with ``export.json``, the returned manifest.

    Raises:
        ExportError: nothing is trained, or a fresh pipeline does not load or reproduce the weights.
    """
    as_lora = isinstance(policy.weights, LoraWeights) and policy.weights.mask is None
    if not policy.weights.parameters():
        raise ExportError("This policy was loaded with train='none', so there is nothing to export.")
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST_FILE).exists():
        raise ExportError(f"{folder} holds files that are not an export: choose a new or empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        manifest = (_export_lora if as_lora else _export_full)(policy, partial, weights, verify)
        (partial / MANIFEST_FILE).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def load_lora(policy: Policy, path: str | Path, *, name: str = "current") -> None:
    """Read an exported diffusers LoRA (file or folder) into the named weights; inverse of :func:`export`.

    Raises:
        ModelError: the file is missing, or its rank or layers differ from the policy's.
    """
    from safetensors.torch import load_file

    if not isinstance(policy.weights, LoraWeights):
        raise ModelError("A LoRA can only be loaded into a policy with train='lora'.")
    if policy.weights.lasting:
        raise ModelError(
            "An exported LoRA is no start for init='pissa', whose factors begin at the weights themselves: load it "
            "into a policy with init='gaussian' and the file's rank."
        )
    file = Path(path) / LORA_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ModelError(f"{file} does not exist: give an exported LoRA file or its folder.")
    state = {key.removeprefix("transformer."): tensor for key, tensor in load_file(file).items()}
    scaling = policy.weights.scaling
    policy.weights.load_state_dict(name, {k: t / scaling if ".lora_B." in k else t for k, t in state.items()})


def _export_lora(policy: Policy, folder: Path, name: str, verify: bool) -> Manifest:
    from safetensors.torch import save_file

    weights = policy.weights
    assert isinstance(weights, LoraWeights)
    plain = {path: t.float().cpu().contiguous() for path, t in weights.factors(name).items()}
    if not plain:
        raise ExportError(f"The weights '{name}' hold no LoRA: export 'current' or a copy of it.")
    folded = {path: t * weights.scaling if ".lora_B." in path else t for path, t in plain.items()}
    save_file({f"transformer.{path}": t for path, t in folded.items()}, folder / LORA_FILE, {"format": "pt"})
    rank = next(t.shape[0] for path, t in plain.items() if ".lora_A." in path)
    alpha = weights.scaling * rank
    other = kohya_state_dict(plain, family=policy.family, alpha=alpha)
    save_file(other, folder / COMFYUI_FILE, {"format": "pt"})
    measured = _verify_lora(policy, folder, name, folded) if verify else {}
    return Manifest(
        kind="lora",
        family=policy.family,
        base_model=policy.folder.name,
        weights=name,
        files=(LORA_FILE, COMFYUI_FILE),
        dtype=str(policy.dtype).removeprefix("torch."),
        rank=rank,
        alpha=alpha,
        **measured,
    )


def _verify_lora(policy: Policy, folder: Path, name: str, folded: dict[str, Tensor]) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    pipeline = _transformer_only(policy.folder, policy.dtype)
    try:
        with quiet():  # it warns that the absent text encoders get no LoRA
            pipeline.load_lora_weights(folder, weight_name=LORA_FILE)
    except Exception as error:  # whatever it is, the file is not loadable, which is what must be said
        raise ExportError(
            f"A fresh {policy.pipeline_class} cannot load the exported LoRA: {error}"
        ) from error
    loaded = {n: m for n, m in pipeline.transformer.named_modules() if isinstance(m, LoraLayer)}
    expected = {path.split(".lora_")[0] for path in folded}
    if loaded.keys() != expected:
        raise ExportError(
            f"A fresh {policy.pipeline_class} loaded {len(loaded)} of {len(expected)} exported LoRA layers: "
            "the base model's layer names do not match the trained model's."
        )
    weight_error = max(_factor_error(layer, path, folded) for path, layer in loaded.items())
    _require_small("LoRA factors", weight_error, _WEIGHT_TOLERANCE[policy.dtype])
    return {"layers": len(loaded), "weight_error": weight_error, **_compare(policy, pipeline, name)}


def _factor_error(layer: Any, path: str, folded: dict[str, Tensor]) -> float:
    adapter = next(iter(layer.lora_A))
    worst = 0.0
    for part, scale in (("lora_A", 1.0), ("lora_B", layer.scaling[adapter])):
        ours = folded[f"{path}.{part}.weight"]
        theirs = getattr(layer, part)[adapter].weight.detach().float().cpu() * scale
        worst = max(worst, float((theirs - ours).abs().max() / ours.abs().max().clamp_min(1e-12)))
    return worst


def _export_full(policy: Policy, folder: Path, name: str, verify: bool) -> Manifest:
    for part in policy.folder.iterdir():
        if part.is_dir() and part.name != "transformer":
            shutil.copytree(part, folder / part.name)
    shutil.copy(policy.folder / "model_index.json", folder)
    network = policy.transformer
    with torch.device("meta"):
        twin = type(network).from_config(network.config)
    with policy.weights.use(name):
        own = policy.weights
        whole = own.merged(name) if isinstance(own, LoraWeights) else network.state_dict()
        state = {k: t.to("cpu", policy.dtype) if t.is_floating_point() else t for k, t in whole.items()}
    twin.load_state_dict(state, assign=True)
    twin.save_pretrained(folder / "transformer", safe_serialization=True)
    measured: dict[str, Any] = {}
    if verify:
        measured = dict(_compare(policy, _transformer_only(folder, policy.dtype), name))
    return Manifest(
        kind="full",
        family=policy.family,
        base_model=policy.folder.name,
        weights=name,
        files=tuple(sorted(part.name for part in folder.iterdir())),
        dtype=str(policy.dtype).removeprefix("torch."),
        **measured,
    )


def _transformer_only(folder: Path, dtype: torch.dtype) -> Any:
    index = json.loads((folder / "model_index.json").read_text())
    kept = ("transformer", "scheduler")
    left_out = {k: None for k, v in index.items() if isinstance(v, list) and k not in kept}
    return open_stock_pipeline(folder, dtype=dtype, **left_out)


@torch.no_grad()
def _compare(policy: Policy, pipeline: Any, name: str) -> dict[str, Any]:
    """Velocity of the fresh pipeline against ours on random latents and embeddings."""
    x, sigma, cond = _inputs(policy)
    try:
        ours = policy.velocity(x, sigma, cond, weights=name)
        frozen = policy.velocity(x, sigma, cond, weights="frozen") if _has_frozen(policy) else None
        with _in_place(policy, pipeline.transformer) as transformer:
            theirs = policy.predict(transformer, x, sigma, cond)
    except torch.cuda.OutOfMemoryError as error:  # says nothing of the file, which may be a run's only result
        reason = str(error).partition("\n")[0]
        return {
            "unverified": f"Memory ran out before a fresh pipeline could be compared ({reason}); to have it checked, "
            "export the run again with `imgrl export --device cpu`."
        }
    size = ours.abs().max()
    error = float((theirs - ours).abs().max() / size)
    _require_small("velocities", error, _TOLERANCE[policy.dtype])
    change = None if frozen is None else float((frozen - ours).abs().max() / size)
    return {"velocity_error": error, "velocity_change": change}


def _has_frozen(policy: Policy) -> bool:
    return "frozen" in policy.weights.names


def _inputs(policy: Policy) -> tuple[Tensor, Tensor, Conditioning]:
    config, device = policy.transformer.config, policy.device
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    cond = {"prompt_embeds": draw(2, 8, config.joint_attention_dim)}
    cond["pooled_prompt_embeds"] = draw(2, config.pooled_projection_dim)
    cond = {key: tensor.to(policy.dtype) for key, tensor in cond.items()}
    x = draw(2, policy.latent_shape()[0], 8, 8)
    return x, torch.tensor([0.9, 0.4], device=device), Conditioning(tensors=cond)


@contextlib.contextmanager
def _in_place(policy: Policy, transformer: Any) -> Iterator[Any]:
    """``transformer`` on the policy's device while the policy's own waits on the CPU: two may not fit there."""
    try:
        policy.transformer.to("cpu")
        yield transformer.to(policy.device).eval()
    finally:
        transformer.to("meta")  # frees it at once, though the traceback of an error may still refer to it
        policy.transformer.to(policy.device)


def _require_small(what: str, error: float, limit: float) -> None:
    if not error <= limit:  # also catches NaN
        raise ExportError(
            f"A fresh pipeline's {what} differ from the trained model's by {error:.2g} of their size, above "
            f"{limit:.0e}: the exported file would not make the same images, so it was not kept."
        )


def _replace(partial: Path, folder: Path) -> None:
    """Put the finished export in place: one rename for a new folder, one per entry over an old export."""
    if not folder.exists():
        os.replace(partial, folder)
        return
    for part in partial.iterdir():
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(part, target)
