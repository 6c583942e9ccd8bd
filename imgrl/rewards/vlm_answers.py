"""What is sent to a chat endpoint about an image, and how its answer is read: strictly, never guessing a number."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["AnswerError", "number", "png_url", "yes_share"]

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


class AnswerError(ValueError):
    """An answer without what was asked for."""

    def __init__(self, story: str, *, unreadable: bool = False) -> None:
        super().__init__(story)
        self.unreadable = unreadable  # an answer that came, and that another attempt might mend


def png_url(pixels: np.ndarray) -> str:
    """The data URL of a picture uint8 [H, W, 3] as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def number(body: bytes) -> float:
    """The number that is the whole text of the answer.

    Raises:
        AnswerError: if the text is anything else.
    """
    text = _text(_choice(body)).strip()
    if not _NUMBER.fullmatch(text):
        raise AnswerError(f"expected one number and nothing else, got {text[:80]!r}", unreadable=True)
    return float(text)


def yes_share(body: bytes) -> float:
    """p(yes) / (p(yes) + p(no)) as the answer's first word; without probabilities 1 for yes and 0 for no.

    Raises:
        AnswerError: if the answer is neither.
    """
    choice = _choice(body)
    shares = _shares(choice)
    if shares is not None:
        return shares["yes"] / (shares["yes"] + shares["no"])
    word = _word(_text(choice))
    if word not in ("yes", "no"):
        raise AnswerError(f"expected yes or no, got {_text(choice)[:80]!r}", unreadable=True)
    return float(word == "yes")


def _choice(body: bytes) -> dict[str, Any]:
    try:
        choice = json.loads(body)["choices"][0]
        if isinstance(choice, dict) and isinstance(choice.get("message"), dict):
            return choice
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        pass
    shown = body[:80].decode(errors="replace")
    raise AnswerError(f"expected a chat completion with a message, got {shown!r}", unreadable=True)


def _text(choice: dict[str, Any]) -> str:
    text = choice["message"].get("content")
    if not isinstance(text, str):
        raise AnswerError(f"expected a text as the message's content, got {text!r}", unreadable=True)
    return text


def _shares(choice: dict[str, Any]) -> dict[str, float] | None:
    """Probability of yes and of no as the answer's first word; None where it is neither or they are not told."""
    try:
        tokens = (choice.get("logprobs") or {}).get("content") or ()
        first = next((token for token in tokens if _word(token["token"])), None)
        if first is None or _word(first["token"]) not in ("yes", "no"):
            return None
        found = {"yes": 0.0, "no": 0.0}
        for rival in first["top_logprobs"]:
            if not rival["logprob"] <= 1e-6:
                raise ValueError("a probability above 1")
            if (word := _word(rival["token"])) in found:
                found[word] += math.exp(rival["logprob"])
        return found if sum(found.values()) > 0 else None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AnswerError(
            f"the probabilities are not in the usual form ({type(error).__name__})", unreadable=True
        ) from error


def _word(text: str) -> str:
    return text.strip(" \t\r\n.!,;:\"'*`\u2581\u0120").lower()
