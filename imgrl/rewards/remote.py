"""A reward behind HTTP: the client of ``imgrl serve-rewards``.

Whatever goes wrong is raised; retrying, backing off and masking are the caller's, as for every reward. A recipe sets them
beside the weight: ``{use: remote, args: {url: ...}, batch: 32, timeout: 60, retries: 4, backoff: 2}``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from imgrl.errors import RewardError
from imgrl.rewards.wire import WireError, pack, read_scores

__all__ = ["Remote"]


class Remote:
    """Scores of a reward server.

    Args:
        url: of the server, such as ``http://127.0.0.1:8700``.
        reward: which of its rewards; None asks for the weighted sum of all.
        token: name of the environment variable that holds its bearer token, if it wants one.
        timeout: seconds to wait for a connection, and for each piece of the answer.
        most_bytes: a longer answer is refused.
    """

    def __init__(
        self,
        *,
        url: str,
        reward: str | None = None,
        token: str | None = None,
        timeout: float = 60.0,
        most_bytes: int = 1 << 20,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise RewardError(f"The address of a reward server looks like http://host:8700, got {url!r}.")
        if not timeout > 0 or most_bytes < 1:
            raise ValueError(f"Expected timeout > 0 and most_bytes >= 1, got {timeout} and {most_bytes}.")
        self.address = f"{url.rstrip('/')}/score" + (f"/{reward}" if reward else "")
        self.timeout, self.most_bytes = timeout, most_bytes
        self.headers = {"Content-Type": "application/octet-stream"}
        if token is not None:
            if not os.environ.get(token):
                raise RewardError(
                    f"The environment variable {token} should hold the reward server's token, but is not set."
                )
            self.headers["Authorization"] = f"Bearer {os.environ[token]}"

    def __call__(
        self, images: Tensor, prompts: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        """Scores of images [n, 3, H, W] in [0, 1]; None where the server's reward does not apply."""
        import requests

        with requests.post(
            self.address,
            data=pack(images, prompts, columns),
            headers=self.headers,
            timeout=self.timeout,
            stream=True,
            allow_redirects=False,
        ) as response:
            body = response.raw.read(self.most_bytes + 1, decode_content=True)
            if len(body) > self.most_bytes:
                raise WireError(f"the server answered with more than {self.most_bytes} bytes")
            if response.status_code != 200:
                raise WireError(
                    f"the server answered {response.status_code}: {body[:200].decode(errors='replace')}"
                )
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise WireError(f"the server's answer is no JSON: {body[:80]!r}") from error
        return read_scores(answer, len(prompts))
