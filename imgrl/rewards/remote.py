"""A reward behind HTTP: the client of ``imgrl serve-rewards``.

Whatever goes wrong in a call is raised; retrying, backing off and masking are the caller's, as for every reward. A
recipe sets them beside the weight: ``{use: remote, args: {url: ...}, batch: 32, timeout: 60, retries: 4, backoff: 2}``.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.address import is_loopback, token_from
from imgrl.rewards.wire import PROTOCOL, WireError, pack, parse, read_scores

__all__ = ["Remote"]

_PIECE = 1 << 16


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other wrong one: the token is for the server that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Remote:
    """Scores of a reward server. The server is asked once, at construction, what it has.

    Args:
        url: of the server, such as ``http://127.0.0.1:8700``.
        reward: which of its rewards; None asks for the weighted sum of all.
        token: name of the environment variable that holds its bearer token, if it wants one.
        timeout: seconds to wait for a connection and for the server to begin, and then for the whole answer.
        greeting: seconds to wait for the server at construction.
        most_bytes: a longer answer is refused.
    """

    def __init__(
        self,
        *,
        url: str,
        reward: str | None = None,
        token: str | None = None,
        timeout: float = 60.0,
        greeting: float = 5.0,
        most_bytes: int = 1 << 20,
    ) -> None:
        if not timeout > 0 or not greeting > 0 or most_bytes < 1:
            raise ValueError(
                f"Expected timeout > 0, greeting > 0 and most_bytes >= 1, got {timeout}, {greeting} and {most_bytes}."
            )
        host = _host(url)
        self.url = url.rstrip("/")
        self.timeout, self.most_bytes = timeout, most_bytes
        self.headers = {} if token is None else {"Authorization": f"Bearer {token_from(token)}"}
        proxies = urllib.request.ProxyHandler({} if is_loopback(host) else None)  # None: the environment's
        self._opener = urllib.request.build_opener(proxies, _StayHere)
        self._path = "/score" if reward is None else f"/score/{quote(reward, safe='')}"
        self._greet(reward, greeting)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], /, **columns: Sequence[Any]
    ) -> list[float | None]:
        """Score images [n, 3, H, W] in [0, 1]; None where the server's reward does not apply."""
        # The server's limits on images and bytes; 4 bytes a pixel where 3 are sent leave room for text and columns.
        room = self.most_sent // (4 * images.shape[-2] * images.shape[-1])
        step = len(prompts) if self.groupwise else max(1, min(self.most_images, room))
        scores: list[float | None] = []
        for first in range(0, len(prompts), step):
            part = slice(first, first + step)
            asked = {name: values[part] for name, values in columns.items()}
            blob = pack(images[part], prompts[part], asked)
            answer = self._ask(self._path, blob, timeout=self.timeout)
            scores += read_scores(answer, len(prompts[part]))
            if answer.get("identity") != self.identity:
                raise WireError(
                    "the server was restarted with another reward than it had when this run began"
                )
        return scores

    def _greet(self, reward: str | None, timeout: float) -> None:
        """Ask the server what it is, so that a wrong address is found before anything expensive."""
        try:
            version = self._ask("/version", None, timeout=timeout)
            if version.get("protocol") != PROTOCOL:
                raise WireError(
                    f"it speaks protocol {version.get('protocol')!r}, this version of imgrl {PROTOCOL}"
                )
            known = {str(entry["name"]): entry for entry in version["rewards"]}
            entry = version["sum"] if reward is None else known.get(reward)
            if entry is not None:
                self.groupwise, identity = bool(entry["groupwise"]), entry["identity"]
                self.most_images, self.most_sent = int(version["most_images"]), int(version["most_bytes"])
        except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RewardError(
                f"The reward server {self.url} cannot be used ({_story(error)}); check the address, its token, and "
                "that `imgrl serve-rewards` runs there."
            ) from error
        if entry is None:
            raise RewardError(
                f"The reward server {self.url} has no reward {reward!r}; it has {', '.join(known)}."
            )
        self.identity: str | None = identity
        self.cacheable = identity is not None

    def _ask(self, path: str, blob: bytes | None, *, timeout: float) -> dict[str, Any]:
        """Send a request and return the JSON object that answers it."""
        headers = self.headers | ({} if blob is None else {"Content-Type": "application/octet-stream"})
        request = urllib.request.Request(f"{self.url}{path}", data=blob, headers=headers)
        try:
            with self._opener.open(request, timeout=timeout) as response:
                status, body = response.status, self._read(response, timeout)
        except HTTPError as error:
            with error:
                status, body = error.code, self._read(error, timeout)
        try:
            answer = parse(body)
        except ValueError as error:
            raise WireError(f"the server answered {status} and no JSON: {body[:80]!r}") from error
        if not isinstance(answer, dict):
            raise WireError(f"the server answered {status} and no JSON object: {body[:80]!r}")
        if status != 200:
            said = " ".join(str(answer.get("error", answer)).split())
            raise WireError(f"the server answered {status}: {said[:300]}")
        return answer

    def _read(self, response: Any, timeout: float) -> bytes:
        """Read the whole answer, unless it is too long or trickles in too slowly."""
        deadline, body = time.monotonic() + timeout, bytearray()
        while piece := response.read1(_PIECE):  # as much as is there, so that the clock is looked at
            body += piece
            if len(body) > self.most_bytes:
                raise WireError(f"the server answered with more than {self.most_bytes} bytes")
            if time.monotonic() > deadline:
                raise WireError(f"the server's answer was not complete after {timeout:g} s")
        return bytes(body)


def _host(url: str) -> str:
    """Return the host of a server's address, refusing what is none."""
    try:
        parts = urlsplit(url)
        port_is_number = parts.port is None or parts.port > 0
    except ValueError:
        port_is_number, parts = False, urlsplit("")
    odd = parts.username or parts.password or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or odd or not port_is_number:
        raise RewardError(f"The address of a reward server looks like http://host:8700, got {url!r}.")
    return parts.hostname


def _story(error: Exception) -> str:
    if isinstance(error, KeyError | TypeError | AttributeError):
        return "it is no reward server of imgrl"
    reason = getattr(error, "reason", None)
    return " ".join(str(reason or error).split()) or type(error).__name__
