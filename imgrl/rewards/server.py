"""Rewards behind HTTP: the application that ``imgrl serve-rewards`` runs. What is said on the wire is in ``wire``.

Every answer is JSON. An error is ``{"error": "one sentence"}`` with a fitting status; a reward that failed is such an
error, never a score.
"""

# No `from __future__ import annotations`: FastAPI must find the types of its endpoints, which are imported late.

import asyncio
import concurrent.futures
import hashlib
import hmac
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from imgrl import __version__
from imgrl.errors import RewardError
from imgrl.rewards.combine import RewardSet
from imgrl.rewards.wire import PROTOCOL, WireError, unpack, write_scores
from imgrl.types import Prompt

__all__ = ["create_app"]

_Columns = dict[str, list[Any]]


class _Refusal(Exception):
    """An answer that is an error: its status and its sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class _Desk:
    """Answers requests; each reward works on one at a time, in a thread, since it need not be thread-safe."""

    def __init__(self, rewards: RewardSet, *, most_images: int, most_bytes: int, timeout: float) -> None:
        if most_images < 1 or most_bytes < 1 or not timeout > 0:
            raise ValueError(f"Limits must be positive, got {most_images}, {most_bytes} and {timeout}.")
        if learning := [name for name, reward in rewards.rewards.items() if reward.learns]:
            raise RewardError(f"Reward {learning[0]!r} learns from a run's images, so it cannot be served.")
        self.rewards, self.timeout = rewards, timeout
        self.most_images, self.most_bytes = most_images, most_bytes
        self.busy = {name: asyncio.Lock() for name in rewards.rewards}
        self.weighted = [name for name, spec in rewards.specs.items() if spec.weight]

    def version(self) -> dict[str, Any]:
        rewards = [
            {"name": name, "weight": spec.weight, **self.traits([name])}
            for name, spec in self.rewards.specs.items()
        ]
        limits = {"most_images": self.most_images, "most_bytes": self.most_bytes, "timeout": self.timeout}
        return {
            "imgrl": __version__,
            "protocol": PROTOCOL,
            "rewards": rewards,
            "sum": self.traits(self.weighted, summed=True),
            **limits,
        }

    def traits(self, names: Sequence[str], *, summed: bool = False) -> dict[str, Any]:
        """What a client must know: whether a call must be one whole group, and if its scores can be kept."""
        identities = [self.rewards.identity(name) for name in names]
        identity = None
        if all(identities):
            weights = [self.rewards.specs[name].weight if summed else None for name in names]
            identity = hashlib.sha256(repr([identities, weights]).encode()).hexdigest()
        groupwise = any(self.rewards.rewards[name].groupwise for name in names)
        return {"groupwise": groupwise, "identity": identity}

    async def score(
        self, chunks: AsyncIterator[bytes], length: str | None, name: str | None
    ) -> dict[str, Any]:
        """Answer one request: the scores of one reward, or the weighted sum of all."""
        deadline = time.monotonic() + self.timeout
        if name is not None and name not in self.busy:
            raise _Refusal(404, f"there is no reward {name!r}; this server has {', '.join(self.busy)}")
        names = self.weighted if name is None else [name]
        blob = await self._body(chunks, length, deadline)
        try:
            images, texts, columns = await _in_thread(lambda: unpack(blob, most_images=self.most_images))
        except WireError as error:
            raise _Refusal(400, str(error)) from error
        self._check_columns(names, columns)
        prompts = [
            Prompt(id=row, text=text, columns={key: values[row] for key, values in columns.items()})
            for row, text in enumerate(texts)
        ]
        values = {n: await self._turn(n, images, prompts, columns, deadline) for n in names}
        scores = values[name] if name is not None else self._sum(values)
        return {"scores": write_scores(scores), **self.traits(names, summed=name is None)}

    async def _body(self, chunks: AsyncIterator[bytes], length: str | None, deadline: float) -> bytes:
        """Read the request, counting as it comes: what it says of its length may be missing or wrong."""
        too_long = _Refusal(413, f"a request may have at most {self.most_bytes} bytes")
        if length is not None and length.isdecimal() and int(length[:20]) > self.most_bytes:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                async for chunk in chunks:
                    body += chunk
                    if len(body) > self.most_bytes:
                        raise too_long
        except TimeoutError as error:
            raise _Refusal(408, f"the request was not complete after {self.timeout:g} s") from error
        return bytes(body)

    def _check_columns(self, names: Sequence[str], columns: _Columns) -> None:
        try:
            for name in names:
                self.rewards.rewards[name].passed_columns(columns)
        except RewardError as error:
            raise _Refusal(422, str(error)) from error

    async def _turn(
        self, name: str, images: Tensor, prompts: Sequence[Prompt], columns: _Columns, deadline: float
    ) -> Tensor:
        """Wait for the reward to be free and have it score, within the time that is left.

        A reward that is too slow stays busy until it is done: giving up on the answer does not stop its thread.
        """
        lock = self.busy[name]
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await lock.acquire()
        except TimeoutError as error:
            raise _Refusal(504, f"reward {name!r} was busy for {self.timeout:g} s") from error
        group = torch.zeros(len(prompts), dtype=torch.int64)
        work = _in_thread(lambda: self.rewards.ask(name, images, prompts, columns=columns, group=group))
        work.add_done_callback(lambda done: (lock.release(), done.cancelled() or done.exception()))
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                values, missed = await asyncio.shield(work)
        except RewardError as error:  # it broke its contract
            raise _Refusal(503, str(error)) from error
        except TimeoutError as error:
            raise _Refusal(504, f"reward {name!r} had no answer within {self.timeout:g} s") from error
        if missed.any():
            story = self.rewards.last_failure[name]
            status = 504 if isinstance(story.__cause__, TimeoutError) else 503
            raise _Refusal(status, f"reward {name!r} failed ({story})")
        return values

    def _sum(self, values: dict[str, Tensor]) -> Tensor:
        """The weighted sum over the rewards that apply to an image, NaN where none does."""
        stacked = torch.stack([self.rewards.specs[name].weight * value for name, value in values.items()])
        total = stacked.nansum(0).masked_fill(stacked.isnan().all(0), torch.nan)
        if total.isinf().any():
            raise _Refusal(503, "the weighted sum of the rewards is no finite number")
        return total


def _in_thread(call: Callable[[], Any]) -> asyncio.Future[Any]:
    """Run ``call`` in a daemon thread: one that hangs must not keep the server from being stopped."""
    outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # a thread cannot raise into its caller
            outcome.set_exception(error)

    threading.Thread(target=work, name="imgrl-serve", daemon=True).start()
    return asyncio.wrap_future(outcome)


def create_app(
    rewards: RewardSet,
    *,
    token: str | None = None,
    most_images: int = 256,
    most_bytes: int = 256 << 20,
    timeout: float = 120.0,
) -> Any:
    """Make the FastAPI application that serves ``rewards``.

    ``GET /health`` and ``GET /version``; ``POST /score`` answers the weighted sum, ``POST /score/{name}`` one reward.

    Args:
        rewards: built and checked; retrying is better left to the client.
        token: that clients must send as ``Authorization: Bearer ...``, except for ``/health``; None lets all in.
        most_images: of one request.
        most_bytes: of one request; its images take 3 bytes a pixel.
        timeout: seconds for one request, its upload and its wait for other requests included.

    Raises:
        RewardError: for a reward that learns.
    """
    from fastapi import Depends, FastAPI, Request
    from fastapi.responses import JSONResponse

    desk = _Desk(rewards, most_images=most_images, most_bytes=most_bytes, timeout=timeout)
    app = FastAPI(title="imgrl rewards", docs_url=None, redoc_url=None, openapi_url=None)

    async def admit(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise _Refusal(401, "this server wants its token as `Authorization: Bearer ...`")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/version", dependencies=[Depends(admit)])
    async def version() -> dict[str, Any]:
        return desk.version()

    @app.post("/score", dependencies=[Depends(admit)])
    async def score(request: Request) -> JSONResponse:
        return JSONResponse(await desk.score(request.stream(), request.headers.get("content-length"), None))

    @app.post("/score/{name:path}", dependencies=[Depends(admit)])
    async def score_one(request: Request, name: str) -> JSONResponse:
        return JSONResponse(await desk.score(request.stream(), request.headers.get("content-length"), name))

    _say_errors(app)
    return app


def _say_errors(app: Any) -> None:
    """Have every error answered by JSON with one sentence."""
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    @app.exception_handler(_Refusal)
    async def refused(_: Request, error: _Refusal) -> JSONResponse:
        return JSONResponse({"error": error.sentence}, status_code=error.status)

    @app.exception_handler(HTTPException)
    async def no_such_page(request: Request, error: HTTPException) -> JSONResponse:
        sentence = f"{request.method} {request.url.path}: {error.detail}; ask /health, /version or /score"
        return JSONResponse({"error": sentence}, status_code=error.status_code)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"the server failed ({type(error).__name__})"}, status_code=500)
