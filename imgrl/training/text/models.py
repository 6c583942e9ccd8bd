"""Language models and their tokenizers from stock transformers folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imgrl.errors import ConfigError, ModelError
from imgrl.recipe_text import TextModel
from imgrl.resources import asset

__all__ = ["load_model", "load_teacher", "place_of", "require_same_outputs"]


def place_of(path: str) -> str:
    """A folder as given, a bundled model by its name, else a hub name."""
    if Path(path).is_dir() or "/" in path:
        return path
    return str(asset(path))


def load_model(spec: TextModel) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer.

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


def _load(place: str) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # standard error is for sentences
    try:
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{place} cannot be loaded as a causal language model: {_on_one_line(error)}"
        ) from error


def _tokenizer(place: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ModelError(f"{place} has no tokenizer that can be loaded: {_on_one_line(error)}") from error


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
