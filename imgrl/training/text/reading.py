"""What prompts and data must be so that the model can read them: a chat template, and room for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imgrl.errors import ConfigError

__all__ = ["as_texts", "require_length", "require_room", "require_template"]


def require_template(values: Iterable[Any], tokenizer: Any, source: str) -> None:
    """Refuse conversations where the tokenizer has no chat template.

    Args:
        values: prompts, and completions if there are some: texts, or lists of messages.
        tokenizer: the model's.
        source: of the data, for the message.

    Raises:
        ConfigError: naming the source.
    """
    if getattr(tokenizer, "chat_template", None) is None and any(not isinstance(v, str) for v in values):
        raise ConfigError(
            f"{source} holds conversations, but the model's tokenizer has no chat template; give texts, or a model "
            "with one"
        )


def as_texts(prompts: Sequence[Any], tokenizer: Any, source: str) -> tuple[list[str], bool]:
    """Prompts as the model reads them, and whether the tokenizer's chat template made them from conversations.

    Raises:
        ConfigError: if there is no template, or it has no use for one of the prompts.
    """
    if all(isinstance(prompt, str) for prompt in prompts):
        return list(prompts), False
    require_template(prompts, tokenizer, source)
    return [_templated(prompt, tokenizer, source, open=True) for prompt in prompts], True


def _templated(messages: Any, tokenizer: Any, source: str, *, open: bool) -> str:
    """A conversation as a text; an ``open`` one awaits an answer."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open)
    except Exception as error:  # templates are programs that raise what they like
        raise ConfigError(
            f"{source} holds a prompt that the tokenizer's chat template cannot read ({error}); give each as a list of "
            "messages with role and content"
        ) from error


def require_room(
    prompts: Sequence[Any], tokenizer: Any, model: Any, *, more: int, key: str, source: str
) -> None:
    """Refuse sequences that the model has no positions for.

    Args:
        prompts: texts or conversations.
        tokenizer: the model's.
        model: whose configuration says how many tokens it reads; some do not, and read any number.
        more: tokens that are generated after a prompt.
        key: the recipe's that says so.
        source: of the prompts, for the message.

    Raises:
        ConfigError: naming the longest prompt's length and the model's.
    """
    room = _room(model)
    texts, templated = as_texts(prompts, tokenizer, source)
    ids = tokenizer(texts, add_special_tokens=not templated)["input_ids"]
    longest = max(map(len, ids))
    if room is not None and longest + more > room:
        raise ConfigError(
            f"The longest prompt of {source} has {longest} tokens and {key} is {more}, but the model was made for no "
            f"more than {room} in all; shorten the prompts or lower {key}"
        )


def require_length(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, model: Any, *, most: int, source: str
) -> None:
    """Refuse rows of data that the model has no positions for.

    Args:
        rows: texts or conversations, the prompt first.
        tokenizer: the model's.
        model: whose configuration says how many tokens it reads.
        most: tokens at which rows are cut anyway.
        source: of the rows, for the message.

    Raises:
        ConfigError: naming a row's length and the model's.
    """
    room = _room(model)
    if room is None or most <= room:
        return

    def length(*values: Any) -> int:
        prompt, *others = values
        if isinstance(prompt, str):
            rest = sum(len(tokenizer(value, add_special_tokens=False)["input_ids"]) for value in others)
            return len(tokenizer(prompt)["input_ids"]) + rest
        text = _templated([message for value in values for message in value], tokenizer, source, open=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    for number, row in enumerate(rows, 1):
        prompt, *others = row.values()
        longest = max(length(prompt, other) for other in others)
        if longest > room:
            raise ConfigError(
                f"Row {number} of {source} has {longest} tokens, but the model was made for no more than {room}: "
                f"set data.max_tokens to {room} or less, at which longer rows are cut"
            )


def _room(model: Any) -> int | None:
    """Tokens that a model was made for; None where its configuration does not say."""
    config = model.config.get_text_config()
    room = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if room is None or not isinstance(rope.get("factor"), int | float):
        return room
    return max(room, int(rope["factor"] * (rope.get("original_max_position_embeddings") or room)))
