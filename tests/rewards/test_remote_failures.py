"""A reward server that goes wrong or away in mid-run: images are masked within the budget, and nothing is a zero."""

import threading
import time

import pytest
import torch
from reward_servers import Uvicorn, greeting, impostor, reply

from imgrl.errors import RewardError
from imgrl.rewards import RewardSet
from imgrl.rewards.remote import Remote
from imgrl.rewards.wire import WireError
from imgrl.types import Prompt

IMAGES = torch.tensor([0.0, 51 / 255, 102 / 255, 1.0]).view(4, 1, 1, 1).expand(4, 3, 4, 4)
TEXTS = ["a", "b", "c", "d"]
PROMPTS = [Prompt(id=i, text=text) for i, text in enumerate(TEXTS)]
MEANS = pytest.approx([0.0, 0.2, 0.4, 1.0], abs=1e-6)


def served():
    """Our own server of the mean pixel."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    from imgrl.rewards.server import create_app

    return Uvicorn(create_app(RewardSet.from_specs({"bright": lambda i, p: i.mean((1, 2, 3))})))


def silence(handler):
    time.sleep(1)


def trickle(handler):
    """A byte now and then, for ever: no single wait is long."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.05)


def flood(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def half(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"scores": [1.0, ')


@pytest.mark.parametrize(
    ("then", "sentence"),
    [
        (lambda h: reply(h, b"\x80\x04garbage"), "WireError: the server answered 200 and no JSON"),
        (lambda h: reply(h, b""), "no JSON: b''"),
        (lambda h: reply(h, b"[" * 100_000), "no JSON"),
        (lambda h: reply(h, b'{"scores": [1, 2]}'), "given 4 images and answered with 2 scores"),
        (lambda h: reply(h, b'{"scores": [1, 2, 3, NaN]}'), "no JSON"),
        (lambda h: reply(h, b'{"scores": [1, 2, 3, "4"]}'), "finite numbers or null, got 4"),
        (lambda h: reply(h, b'{"scores": [1, 2, 3, 1e999]}'), "got inf"),
        (lambda h: reply(h, b'{"error": "overheated"}', 500), "answered 500: overheated"),
        (lambda h: reply(h, b"Internal Server Error", 500), "answered 500 and no JSON"),
        (lambda h: reply(h, b'{"scores": [0, 0, 0, 0]}', 500), "answered 500"),
        (lambda h: reply(h, b'{"scores": [0, 0, 0, 0]}', 202), "answered 202"),
        (lambda h: reply(h, b"{}", 307, Location="/elsewhere"), "answered 307"),
        (flood, "more than 1000000 bytes"),
        (trickle, "not complete after 0.3 s"),
        (half, "no JSON"),
        (silence, "timed out"),
        (lambda h: None, "RemoteDisconnected|ConnectionReset"),
    ],
)
def test_whatever_it_answers_is_masked_and_never_a_score(then, sentence):
    with impostor(greeting(then)) as (url, seen):
        timeout = 0.3 if then in (silence, trickle) else 30.0
        args = {"url": url, "timeout": timeout, "most_bytes": 1_000_000}
        rewards = RewardSet.from_specs(
            {"far": {"use": "remote", "args": args, "retries": 0}}, failure_budget=1.0
        )
        scores = rewards.score(IMAGES, PROMPTS)
    assert scores.failures == {"far": 4} and not scores.mask.any()
    assert scores.total.isnan().all() and scores.values["far"].isnan().all()
    assert pytest.raises(RewardError, rewards.check_failures, {"far": 5}, 4).match(sentence)
    assert {path for _, path, _, _ in seen} == {"/version", "/score"}  # nobody was sent elsewhere


def test_the_token_stays_with_the_server_that_was_named(monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret")
    with impostor(lambda h: reply(h, b"{}")) as (other, overheard):
        then = greeting(lambda h: reply(h, b"{}", 307, Location=f"{other}/score"))
        with impostor(then) as (url, seen):
            remote = Remote(url=url, token="TOKEN")
            with pytest.raises(WireError, match="answered 307"):
                remote(IMAGES, TEXTS)
    assert not overheard
    assert {headers["Authorization"] for _, _, headers, _ in seen} == {"Bearer s3cret"}


def far(url, budget=0.25, **settings):
    quick = {"retries": 0, "batch": 1, **settings}
    return RewardSet.from_specs(
        {"far": {"use": "remote", "args": {"url": url}, **quick}}, failure_budget=budget
    )


def test_a_server_that_dies_masks_and_one_that_comes_back_heals():
    server = served()
    with server:
        rewards = far(server.url, budget=1.0)
        assert rewards.score(IMAGES, PROMPTS).total.tolist() == MEANS
    dead = rewards.score(IMAGES, PROMPTS)
    assert not dead.mask.any() and dead.total.isnan().all() and dead.failures == {"far": 4}
    with server:
        again = rewards.score(IMAGES, PROMPTS)
    assert again.mask.all() and again.total.tolist() == MEANS and again.failures == {"far": 0}


def dying(after):
    """A reward that ends its server's willingness after so many images: connections are dropped unanswered."""
    served = []

    def then(handler):
        served.append(1)
        if len(served) <= after:
            reply(handler, b'{"scores": [0.5]}')

    return greeting(then)


@pytest.mark.parametrize(
    ("answered", "budget", "within"), [(3, 0.25, True), (2, 0.25, False), (2, 0.5, True)]
)
def test_the_failure_budget_decides(answered, budget, within):
    with impostor(dying(answered)) as (url, _):
        rewards = far(url, budget)
        if within:
            scores = rewards.score(IMAGES, PROMPTS)
            assert scores.mask.tolist() == [True] * answered + [False] * (4 - answered)
            assert scores.total[:answered].tolist() == [0.5] * answered
        else:
            with pytest.raises(
                RewardError, match="'far' failed on 2 of 4 images, more than the budget of 25%"
            ):
                rewards.score(IMAGES, PROMPTS)


def test_retries_bridge_a_restart():
    """The server is back before the last attempt, so nothing is masked."""
    server = served()
    with server:
        rewards = far(server.url, budget=0.0, batch=None, retries=6, backoff=0.05)

    waiting = threading.Timer(0.2, server.start)
    waiting.start()
    try:
        scores = rewards.score(IMAGES, PROMPTS)
    finally:
        waiting.join()
        server.stop()
    assert scores.mask.all() and scores.total.tolist() == MEANS
