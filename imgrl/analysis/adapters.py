"""LoRA adapters merged onto their base while it is read: W0 + s B A, rows at a time, in float32."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgrl.analysis.weights import Matrix, Weights, as_matrix, open_file
from imgrl.errors import ModelError
from imgrl.policies.export import LORA_FILE

__all__ = ["Adapter", "added", "find", "merge"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIXES = ("base_model.model.", "transformer.", "unet.", "model.")
_UNTOUCHED = (True, False, "gaussian", "eva", "orthogonal")  # starts that leave the base's weights alone
_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora.down.weight": "a",
    "lora.up.weight": "b",
    "alpha": "alpha",
}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA on disk: its tensors by layer and how they are scaled."""

    path: Path
    layers: Mapping[str, Mapping[str, Tensor]]
    """By the layer's path: factors ``a`` [r, in], ``b`` [out, r] and perhaps ``alpha``."""
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that were trained whole (PEFT's ``modules_to_save``)."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """PEFT's settings; empty for a diffusers LoRA, whose scale is in B or in ``alpha``."""

    def scale(self, layer: str) -> float:
        """Factor of B A: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
        rank = self.layers[layer]["a"].shape[0]
        if "alpha" in self.layers[layer]:
            return float(self.layers[layer]["alpha"]) / rank
        if "lora_alpha" not in self.config:
            return 1.0
        patterns = self.config.get("alpha_pattern") or {}
        found = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), None)
        alpha = float(self.config["lora_alpha"] if found is None else found)
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)


def find(path: Path) -> Adapter | None:
    """Read the LoRA at a path (its file, its folder, or a run with ``lora/``); None if there is another thing.

    Raises:
        ModelError: if it is a LoRA of a kind that cannot be merged as W0 + s B A, or one without its s.
    """
    for folder in (path, path / "lora"):
        if (folder / _CONFIG).is_file():
            return _peft(folder)
        if (folder / LORA_FILE).is_file():
            return _diffusers(folder / LORA_FILE)
        if (folder / _WEIGHTS).is_file():
            raise _unscaled(folder / _WEIGHTS)
    if path.is_file() and path.suffix == ".safetensors":
        if path.name == _WEIGHTS and (path.parent / _CONFIG).is_file():
            return _peft(path.parent)
        keys = list(open_file(path).keys())
        if any(key.endswith(".lora_down.weight") for key in keys):
            raise ModelError(
                f"{path} is a LoRA with kohya's names: give the {LORA_FILE} that was exported beside it"
            )
        if any(".lora_A." in key and key.startswith(_PREFIXES[0]) for key in keys):
            raise _unscaled(path)
        if any(".lora_A." in key or ".lora.down." in key for key in keys):
            return _diffusers(path)
    return None


def _unscaled(file: Path) -> ModelError:
    return ModelError(
        f"{file} is a LoRA of peft, whose scale is in its {_CONFIG}, which is missing beside it: give a folder that "
        f"holds both, as {_WEIGHTS} and {_CONFIG}"
    )


def merge(adapter: Adapter, base: Weights) -> Weights:
    """The base with the adapter's layers changed; every other matrix is the base's very own.

    Raises:
        ModelError: if the base lacks a layer of the adapter or has it in another shape.
    """
    merged = dict(base)
    for layer in adapter.layers:
        stored = _target(adapter, base, layer)
        merged[stored.name] = _merged(adapter, layer, stored)
    for name, tensor in adapter.replaced.items():
        found = [key for key in _candidates(name) if key in base]
        if tensor.ndim > 1 and not found:
            raise _unfit(adapter, name, base)
        if found:
            merged[found[0]] = as_matrix(tensor, found[0])
    return merged


def _peft(folder: Path) -> Adapter:
    facts = folder / "anchors.json"  # of a checkpoint of ours, which may say that its LoRA is masked
    if facts.is_file() and _table(facts.read_bytes(), str(facts)).get("merge"):
        raise ModelError(
            f"{folder} holds a LoRA that is not all its run changed: give the model/ that it wrote"
        )
    config = _table((folder / _CONFIG).read_bytes(), str(folder / _CONFIG))
    kind, start = config.get("peft_type"), config.get("init_lora_weights", True)
    if kind != "LORA" or config.get("use_dora"):
        raise ModelError(
            f"{folder} is a {'DoRA' if config.get('use_dora') else kind} adapter, but only LoRA can be merged here: "
            "merge it with peft and give the saved model"
        )
    if start not in _UNTOUCHED and start != "pissa":
        raise ModelError(
            f"{folder} was started with init_lora_weights={start!r}, which changed the base's weights in a way the "
            "adapter does not record: merge it with peft and give the saved model"
        )
    if not (folder / _WEIGHTS).is_file():
        raise ModelError(f"{folder / _WEIGHTS} is missing: save the adapter as safetensors")
    handle = open_file(folder / _WEIGHTS)
    return _sorted(folder, {key: handle.get_tensor(key) for key in handle.keys()}, config)


def _diffusers(file: Path) -> Adapter:
    handle = open_file(file)
    tensors = {key: handle.get_tensor(key) for key in handle.keys()}
    text = (handle.metadata() or {}).get("lora_adapter_metadata", "{}")
    saved = _table(text, f"lora_adapter_metadata of {file}")
    config = {
        key.removeprefix(part): value
        for part in ("transformer.", "unet.")
        for key, value in saved.items()
        if key.startswith(part)
    }
    own = {key: t for key, t in tensors.items() if not key.startswith("text_encoder")}
    return _sorted(file, own, config)


def _table(text: str | bytes, place: str) -> dict[str, Any]:
    """The JSON object of an adapter's settings.

    Raises:
        ModelError: if it is none.
    """
    try:
        table = json.loads(text)
    except ValueError as error:  # also of bytes that are no UTF-8
        raise ModelError(f"{place} is damaged ({error}): export or download the adapter again") from error
    if not isinstance(table, dict):
        raise ModelError(
            f"{place} is damaged (a {type(table).__name__} where settings by name are expected): export or download "
            "the adapter again"
        )
    return table


def _sorted(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Adapter:
    """Sort tensors into layers by the ends of their names."""
    layers: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        end = next((end for end in _PARTS if key.endswith("." + end)), None)
        if end is None:
            replaced[key.removeprefix("base_model.model.")] = tensor
        else:
            layer = key.removesuffix("." + end).removeprefix("base_model.model.")
            layers.setdefault(layer, {})[_PARTS[end]] = tensor
            if "embedding" in end:
                layers[layer]["embedding"] = tensor
    broken = sorted(layer for layer, parts in layers.items() if not {"a", "b"} <= parts.keys())
    if broken or not layers:
        raise ModelError(
            f"{path} is no complete LoRA: {broken[0] if broken else 'it'} has no factors A and B"
        )
    return Adapter(path=path, layers=layers, replaced=replaced, config=config)


def _candidates(name: str) -> list[str]:
    """Names the base may have the tensor under: pipelines and heads put prefixes before it."""
    plain = [name, *(name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix))]
    return plain + [prefix + name for prefix in _PREFIXES[1:]]


def _target(adapter: Adapter, base: Weights, layer: str) -> Matrix:
    name = next((key for key in _candidates(f"{layer}.weight") if key in base), None)
    if name is None:
        raise _unfit(adapter, layer, base)
    return base[name]


def _unfit(adapter: Adapter, layer: str, base: Weights) -> ModelError:
    trained_on = adapter.config.get("base_model_name_or_path")
    return ModelError(
        f"the LoRA {adapter.path} changes {layer}, which BASE does not have (it has {', '.join(list(base)[:2])}, …): "
        f"give the model it was trained on{f', {trained_on}' if trained_on else ''}"
    )


def _merged(adapter: Adapter, layer: str, stored: Matrix) -> Matrix:
    parts = adapter.layers[layer]
    left, right = parts["b"].flatten(1).float() * adapter.scale(layer), parts["a"].flatten(1).float()
    if "embedding" in parts or adapter.config.get("fan_in_fan_out"):
        left, right = right.T.contiguous(), left.T.contiguous()  # the weight is stored [in, out]
    if (left.shape[0], right.shape[1]) != stored.shape or left.shape[1] != right.shape[0]:
        raise ModelError(
            f"the LoRA {adapter.path} changes {layer} by a matrix of {left.shape[0]}x{right.shape[1]}, but BASE has "
            f"{stored.shape[0]}x{stored.shape[1]} there: give the model it was trained on"
        )
    if adapter.config.get("init_lora_weights") == "pissa":
        left, right = _without_principal(stored, left, right)
    return added(stored, left, right)


def added(stored: Matrix, left: Tensor, right: Tensor) -> Matrix:
    """A stored matrix plus left [rows, r] right [r, columns], in float32, where its rows are read."""
    return Matrix(
        name=stored.name,
        shape=stored.shape,
        dtype=torch.float32,
        rows=lambda a, b: torch.addmm(stored.rows(a, b).float(), left[a:b], right),
        merged_onto=stored,
        original=stored.original,
    )


def _without_principal(stored: Matrix, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """PiSSA (2404.02948) trains on W0 minus its leading part, which A and B took over at the start."""
    from imgrl.analysis.spectrum import decompose

    top = decompose(stored, left.shape[1], exact=True)
    return torch.cat([left, -top.left * top.values[: top.k].float()], 1), torch.cat([right, top.right.T])
