"""A vision-language model's opinion of each image, asked of an OpenAI-compatible endpoint (vLLM, SGLang, a provider).

An image that gets no answer, or one that cannot be read, is asked about again. If that does not help, the whole call
raises and its images are masked: no zero, and no None either, which would mean that the reward does not apply, and the
image would be compared with others by the remaining rewards. Good answers are kept, so a repeated call asks only for
those that are lacking. How many images one bad answer can mask is the recipe's ``batch``:
``{use: vlm, args: {...}, batch: 8, timeout: 300}``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.embeddings import picture_keys
from imgrl.rewards.vlm_answers import AnswerError, number, png_url, yes_share

__all__ = ["Vlm"]

Mode = Literal["yes-no", "score"]
_QUESTIONS: dict[str, str] = {
    "yes-no": 'Does this image show exactly what this text describes: "{prompt}"? Answer with yes or no only.',
    "score": 'How well does this image show what this text describes: "{prompt}"? '
    "Answer with one number from {low} to {high} and nothing else.",
}
_BRIEF = (408, 409, 425, 429, 500, 502, 503, 504)
"""States of a server that may pass."""
_MOST_BYTES = 1 << 20
_MOST_KEPT = 4096


class Vlm:
    """The probability of "yes", or a score brought to [0, 1].

    ``yes-no`` reads the probabilities of the first word, p(yes) / (p(yes) + p(no)), where the endpoint tells them, else
    the word itself, 1 or 0. ``score`` reads one number in the declared range, and nothing but a number.

    Args:
        url: of the endpoint up to its version, such as ``http://127.0.0.1:8000/v1``.
        model: the name it serves the model under.
        mode: ``yes-no`` or ``score``.
        question: asked about every image; ``{prompt}``, ``{low}`` and ``{high}`` are filled in. None takes a general
            one.
        low: end of the declared range, which becomes 0.
        high: other end, which becomes 1.
        key: name of the environment variable that holds the API key, if the endpoint wants one.
        max_tokens: of an answer.
        body: more fields of the request; a field that is None is left out (``{max_tokens: null, ...}``).
        concurrency: questions under way at once.
        timeout: seconds for one question, all in all.
        retries: further questions after a failure that may pass or an answer that cannot be read.
        backoff: seconds before the first of them; doubles each time. A server's Retry-After is heeded up to 30 s.

    Raises:
        RewardError: for an address or a key that cannot be used.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        mode: Mode = "yes-no",
        question: str | None = None,
        low: float = 0.0,
        high: float = 10.0,
        key: str | None = None,
        max_tokens: int = 16,
        body: Mapping[str, Any] | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 2,
        backoff: float = 1.0,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}.")
        if not low < high:
            raise ValueError(f"Expected low < high, got {low} and {high}.")
        if max_tokens < 1 or concurrency < 1 or not timeout > 0 or retries < 0 or backoff < 0:
            raise ValueError(
                "Expected max_tokens >= 1, concurrency >= 1, timeout > 0, retries >= 0 and backoff >= 0, "
                f"got {max_tokens}, {concurrency}, {timeout}, {retries} and {backoff}."
            )
        from imgrl.rewards.registry import require

        require("vlm")
        self.address, self.headers = _address(url), _headers(key)
        self.mode, self.question, self.low, self.high = mode, question or _QUESTIONS[mode], low, high
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        asked = {"model": model, "max_tokens": max_tokens, "temperature": 0.0}
        asked |= {"logprobs": True, "top_logprobs": 20} if mode == "yes-no" else {}
        self.body = {name: value for name, value in {**asked, **(body or {})}.items() if value is not None}
        self._known: dict[tuple[bytes, str], float] = {}

    async def __call__(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Scores of images [n, 3, H, W] in [0, 1] for their prompts.

        Raises:
            RuntimeError: if an image has no readable answer after every attempt; says how many, and the first story.
        """
        import httpx

        levels, digests = picture_keys(images)
        keys = list(zip(digests, prompts, strict=True))
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        turns = asyncio.Semaphore(self.concurrency)
        async with httpx.AsyncClient(headers=self.headers, timeout=self.timeout) as client:

            async def ask(row: int) -> float:
                async with turns:
                    return await self._patiently(client, self._request(png_url(levels[row]), prompts[row]))

            answers = await asyncio.gather(*map(ask, new.values()), return_exceptions=True)
        self._remember({k: v for k, v in zip(new, answers, strict=True) if isinstance(v, float)}, keep=keys)
        if lacking := [answer for answer in answers if isinstance(answer, BaseException)]:
            raise RuntimeError(
                f"{len(lacking)} of {len(keys)} images have no usable answer from {self.address}; the first: "
                f"{type(lacking[0]).__name__}: {lacking[0]}"
            ) from lacking[0]
        return [self._known[key] for key in keys]

    def _remember(self, found: Mapping[tuple[bytes, str], float], *, keep: Sequence[Any]) -> None:
        """Add answers; the oldest are forgotten, but none of this call's."""
        self._known |= found
        needed = set(keep)
        spare = [key for key in self._known if key not in needed]
        for key in spare[: max(0, len(self._known) - _MOST_KEPT)]:
            del self._known[key]

    def _request(self, image: str, prompt: str) -> dict[str, Any]:
        text = self.question.replace("{low}", f"{self.low:g}").replace("{high}", f"{self.high:g}")
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": text.replace("{prompt}", prompt)},  # last: a prompt may hold braces
        ]
        return {**self.body, "messages": [{"role": "user", "content": content}]}

    async def _patiently(self, client: Any, request: Mapping[str, Any]) -> float:
        """Ask as often as allowed."""
        for attempt in range(self.retries + 1):
            wait = self.backoff * 2**attempt
            try:
                async with asyncio.timeout(
                    self.timeout
                ):  # httpx limits the pauses of an answer, not its length
                    status, body, after = await _post(client, self.address, request)
                if status == 200:
                    return self._read(body)
                story: Exception = AnswerError(f"status {status}: {body[:200].decode(errors='replace')}")
                if status not in _BRIEF:
                    raise story
                wait = max(wait, min(after, 30.0))
            except TimeoutError:
                story = TimeoutError(f"no answer within {self.timeout:g} s")
            except Exception as error:
                if not _may_pass(error):
                    raise
                story = error
            if attempt == self.retries:
                raise story
            await asyncio.sleep(wait)
        raise AssertionError("there is at least one attempt")

    def _read(self, body: bytes) -> float:
        if self.mode == "yes-no":
            return yes_share(body)
        value = number(body)
        if not self.low <= value <= self.high:
            raise AnswerError(f"{value:g} is not between {self.low:g} and {self.high:g}", unreadable=True)
        return (value - self.low) / (self.high - self.low)


def _may_pass(error: Exception) -> bool:
    import httpx

    return isinstance(error, httpx.TransportError) or (isinstance(error, AnswerError) and error.unreadable)


async def _post(client: Any, address: str, request: Mapping[str, Any]) -> tuple[int, bytes, float]:
    """Status, body and Retry-After seconds of the answer."""
    async with client.stream("POST", address, json=dict(request)) as response:
        body = b""
        async for part in response.aiter_bytes():
            body += part
            if len(body) > _MOST_BYTES:
                raise AnswerError(f"the answer is longer than {_MOST_BYTES} bytes")
        after = response.headers.get("retry-after", "")
        return response.status_code, body, float(after) if after.isdecimal() else 0.0


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise RewardError(
            f"The address of a vision-language model looks like http://host:8000/v1, got {url!r}."
        )
    return f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"


def _headers(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not os.environ.get(key):
        raise RewardError(
            f"The environment variable {key} should hold the endpoint's API key, but is not set."
        )
    return {"Authorization": f"Bearer {os.environ[key]}"}
