"""Language models and their tokenizers from stock transformers folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imgrl.errors import ConfigError, ModelError
from imgrl.recipe_text import TextModel
from imgrl.resources import model_path
from imgrl.training.text.checkpoints import is_partial
from imgrl.training.text.pissa import tied_layer

__all__ = ["is_adapter", "load_model", "load_teacher", "place_of", "require_same_outputs"]

_BUNDLED = "tiny-lm"


def load_model(spec: TextModel) -> tuple[Any, Any]:
    """The model in float32, adapters merged into it, and its tokenizer.

    Raises:
        ModelError: in one sentence, if either cannot be loaded or the tokenizer has no end of text.
    """
    place = place_of(spec.path)
    model, tokenizer = _load(place), _tokenizer(place)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer of {spec.path} has no end-of-text token, which generation needs.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def load_teacher(spec: TextModel, tokenizer: Any) -> Any:
    """The frozen teacher.

    Raises:
        ConfigError: if its tokenizer is not the student's: log-probabilities of tokens could not be compared.
    """
    assert spec.teacher is not None
    place = place_of(spec.teacher)
    other = _tokenizer(place)
    if other.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"model.teacher {spec.teacher} has {len(other)} tokens that are not the {len(tokenizer)} of the student's "
            "tokenizer; teacher and student must share one"
        )
    return _load(place)


def is_adapter(path: str) -> bool:
    """Whether a model is a LoRA, or another of peft's adapters, on a model that lies elsewhere."""
    return _base_of(place_of(path)) is not None


def place_of(path: str) -> str:
    """A folder as given, a bundled model by its name, else a hub name.

    Raises:
        ModelError: if it reads like a folder, or like the bundled model's name, and is neither.
    """
    import difflib

    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise ModelError(
            f"There is no folder {path}; give one that holds a transformers model, or a hub name like owner/model."
        )
    if is_partial(Path(path)):
        raise ModelError(
            f"{path} is a checkpoint whose LoRA is not all that was changed; give the model/ that its run wrote"
        )
    found = str(model_path(path))
    if found == path and not Path(path).is_dir() and difflib.get_close_matches(path, [_BUNDLED], cutoff=0.7):
        raise ModelError(f"There is no model {path!r}; did you mean {_BUNDLED!r}, the bundled one?")
    return found


def _base_of(place: str) -> str | None:
    """Where the model lies that an adapter belongs to; None for a whole model."""
    import json

    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(place)
    except OSError:  # nothing there: what loads it says so
        return None
    return None if found is None else json.loads(Path(found).read_text()).get("base_model_name_or_path")


def _load(place: str) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # standard error is for sentences
    base = _base_of(place)
    try:
        if base is None:
            return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        from peft import AutoPeftModelForCausalLM

        adapted: Any = AutoPeftModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        if (layer := tied_layer(adapted)) is not None:
            raise ModelError(
                f"{place} changes {layer}, whose matrix is the embedding's too, so it cannot be merged: train it again "
                "with other model.lora.targets"
            )
        return adapted.merge_and_unload().requires_grad_(True)
    except (OSError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        what = "" if base is None else f", an adapter of {base},"
        raise ModelError(
            f"{place}{what} cannot be loaded as a causal language model: {_on_one_line(error)}"
        ) from error


def _tokenizer(place: str) -> Any:
    from transformers import AutoTokenizer

    try:
        found: Any = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ModelError(f"{place} has no tokenizer that can be loaded: {_on_one_line(error)}") from error
    if len(found) <= len(found.all_special_ids):  # some classes make an empty one up where files are missing
        raise ModelError(f"{place} has no tokenizer: save it beside the model with tokenizer.save_pretrained")
    return found


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def require_same_outputs(student: Any, teacher: Any) -> None:
    """Models with one tokenizer may still pad their vocabularies to different sizes."""
    own, other = student.config.vocab_size, teacher.config.vocab_size
    if own != other:
        raise ConfigError(
            f"model.teacher has {other} outputs a token and the student {own}, but meta_distill mixes whole "
            "distributions; give a teacher with as many"
        )
