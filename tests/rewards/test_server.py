"""The reward server, asked in-process: what it answers, what it refuses, and with which status."""

import asyncio
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import imgrl
from imgrl.errors import RewardError
from imgrl.rewards import RewardSet
from imgrl.rewards.wire import pack

pytest.importorskip("fastapi")
pytest.importorskip("httpx2")
from fastapi.testclient import TestClient  # noqa: E402

from imgrl.rewards.server import create_app  # noqa: E402

IMAGES = torch.tensor([0.0, 51 / 255, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)  # levels 0, 51 and 255
TEXTS = ["a", "b", "c"]
QUICK = {"retries": 0, "backoff": 0.0}


def bright(images, prompts):
    return images.mean((1, 2, 3))


def tens(images, prompts, *, factor):
    """Ten times the column; does not apply where the row has none."""
    return [None if x is None else 10.0 * x for x in factor]


def nothing(images, prompts):
    return [None] * len(prompts)


def raises(images, prompts):
    raise OSError("no weights")


def nan(images, prompts):
    return [0.5, math.nan, 0.5]


def short(images, prompts):
    return [0.5]


def hangs(images, prompts):
    time.sleep(4.0)  # in a thread that is left behind
    return [0.5] * len(prompts)


def serve(specs=None, **settings):
    """A client of a server of these rewards."""
    specs = {"bright": bright} if specs is None else specs
    specs = {
        name: {**QUICK, **(given if isinstance(given, dict) else {"use": given})}
        for name, given in specs.items()
    }
    return TestClient(create_app(RewardSet.from_specs(specs), **settings), raise_server_exceptions=False)


def request(**columns):
    return pack(IMAGES, TEXTS, columns)


def by_hand(receive, **settings):
    """Post to /score without a client, so that the body may be anything; status and body of the answer."""
    app, sent = create_app(RewardSet.from_specs({"bright": bright}), **settings), []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/score", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def error(response, status):
    """The sentence of an error, which is all that it may hold."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"} and "\n" not in body["error"]
    return body["error"]


def test_health_and_version():
    two = {"bright": {"use": bright, "weight": 0.25}, "shapes": 2.0}
    with serve(
        {name: given if isinstance(given, dict) else {"weight": given} for name, given in two.items()}
    ) as client:
        assert client.get("/health").json() == {"status": "ok"}
        told = client.get("/version").json()
    assert (told["imgrl"], told["protocol"], told["most_images"]) == (imgrl.__version__, 1, 256)
    assert {entry["name"]: entry["weight"] for entry in told["rewards"]} == {"bright": 0.25, "shapes": 2.0}
    known = {entry["name"]: entry["identity"] for entry in told["rewards"]}
    assert (
        known["bright"] is None and len(known["shapes"]) == 64
    )  # a function has no identity, a built-in one has


def test_one_reward_by_name():
    with serve({"bright": bright, "odd/näme": nothing}) as client:
        answer = client.post("/score/bright", content=request()).json()
        assert answer["scores"] == pytest.approx([0.0, 0.2, 1.0], abs=1e-7)
        assert client.post("/score/odd%2Fn%C3%A4me", content=request()).json()["scores"] == [None] * 3
        assert "no reward 'dark'; this server has bright, odd/näme" in error(client.post("/score/dark"), 404)


def test_the_weighted_sum_is_over_the_rewards_that_apply():
    specs = {
        "tens": {"use": tens, "weight": 0.5},
        "some": {"use": lambda i, p: [None, 1.0, None], "weight": -2.0},
        "seen": {"use": raises, "weight": 0},
    }
    with serve(specs) as client:
        answer = client.post("/score", content=request(factor=[1, 2, None])).json()
    assert answer["scores"] == [5.0, 8.0, None]  # .5*10; .5*20 - 2*1; nothing applies


def test_a_groupwise_reward_gets_the_whole_request():
    class Rank:
        groupwise = True

        def __call__(self, images, prompts):
            return images.mean((1, 2, 3)).argsort().argsort().float()

    with serve({"rank": {"use": Rank(), "batch": 1}}) as client:
        assert client.get("/version").json()["rewards"][0]["groupwise"] is True
        assert client.post("/score/rank", content=request()).json()["scores"] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (raises, r"reward 'r' failed (OSError: no weights)"),
        (nan, "Reward 'r' returned nan for image 1, prompt 'b'"),
        (short, "Reward 'r' was given 3 images and returned 1 scores"),
    ],
)
@pytest.mark.parametrize("path", ["/score", "/score/r"])
def test_a_reward_that_failed_is_an_error_and_no_score(reward, sentence, path):
    with serve({"r": reward, "bright": bright}) as client:
        assert sentence in error(client.post(path, content=request()), 503)
        assert client.post("/score/bright", content=request()).status_code == 200


def test_a_part_that_failed_fails_the_request():
    def second_call(images, prompts):
        if "b" in prompts:
            raise OSError("once")
        return [0.5] * len(prompts)

    with serve({"r": {"use": second_call, "batch": 1}}) as client:
        assert "OSError: once" in error(client.post("/score", content=request()), 503)


def test_a_sum_beyond_all_numbers_is_an_error():
    with serve({"r": {"use": lambda i, p: [3e38] * 3, "weight": 10.0}}) as client:
        assert "no finite number" in error(client.post("/score", content=request()), 503)


def test_a_reward_that_hangs_takes_no_more_than_its_time():
    with serve({"slow": hangs, "bright": bright}, timeout=0.7) as client:
        assert "'slow' had no answer within 0.7 s" in error(
            client.post("/score/slow", content=request()), 504
        )
        assert "'slow' was busy for 0.7 s" in error(client.post("/score/slow", content=request()), 504)
        assert client.post("/score/bright", content=request()).status_code == 200  # others go on


def test_the_rewards_own_deadline_is_a_timeout_too():
    with serve({"slow": {"use": hangs, "timeout": 0.1}}) as client:
        assert "no answer within 0.1 s" in error(client.post("/score/slow", content=request()), 504)


def test_a_reward_works_on_one_request_at_a_time():
    inside, most, lock = 0, 0, threading.Lock()

    def careful(images, prompts):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with lock:
            inside -= 1
        return [0.5] * len(prompts)

    with serve({"careful": careful}) as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post("/score", content=request()).status_code, range(8)))
    assert answers == [200] * 8 and most == 1


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        ("", 401),
        ("s3cret", 401),
        ("Bearer ", 401),
        ("Bearer s3cre", 401),
        ("Bearer s3crets", 401),
        ("bearer s3cret", 401),
        ("Bearer sécret".encode("latin-1"), 401),
        ("Bearer s3cret", 200),
    ],
)
def test_only_the_token_opens(given, status):
    headers = {} if given is None else {"Authorization": given}
    with serve(token="s3cret") as client:
        assert client.get("/version", headers=headers).status_code == status
        answer = client.post("/score", content=request(), headers=headers)
        assert answer.status_code == status
        if status == 401:
            assert "wants its token" in error(answer, 401)
        assert client.get("/health").status_code == 200


def test_nothing_is_read_from_a_stranger():
    read = []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b"", "more_body": False}

    assert by_hand(receive, token="s3cret")[0] == 401 and not read


def chunks(size, count):
    for _ in range(count):
        yield b"x" * size


def test_too_many_bytes_are_refused_with_and_without_a_length():
    with serve(most_bytes=10_000) as client:
        assert "at most 10000 bytes" in error(client.post("/score", content=b"x" * 10_001), 413)
        assert "at most 10000 bytes" in error(client.post("/score", content=chunks(1000, 11)), 413)  # chunked
        lying = client.post("/score", content=chunks(1000, 11), headers={"Content-Length": "5"})
        assert "at most 10000 bytes" in error(lying, 413)
        assert "safetensors" in error(client.post("/score", content=chunks(1000, 10)), 400)
        assert client.post("/score", content=request()).status_code == 200


def test_an_endless_body_is_cut_off_at_the_limit():
    pieces = []

    async def receive():
        pieces.append(1)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    assert by_hand(receive, most_bytes=10_000)[0] == 413 and len(pieces) == 11


def test_a_body_that_never_comes_is_a_timeout():
    async def receive():
        await asyncio.sleep(3600)

    status, body = by_hand(receive, timeout=0.1)
    assert status == 408 and b"not complete after 0.1 s" in body


def test_too_many_images_and_malformed_requests():
    with serve(most_images=2) as client:
        assert "at most 2 images, got 3" in error(client.post("/score", content=request()), 400)
        assert "safetensors" in error(client.post("/score", content=b"hello"), 400)
        assert "safetensors" in error(client.post("/score", content=b""), 400)


def test_a_missing_column_is_named_before_scoring():
    with serve({"tens": tens, "bright": bright}) as client:
        for path in ("/score", "/score/tens"):
            answer = error(client.post(path, content=request(level=[1, 2, 3])), 422)
            assert "'tens' requires the column 'factor', but the prompts have level" in answer
        assert client.post("/score/bright", content=request()).status_code == 200


def test_other_pages_and_methods_are_errors_in_json():
    with serve() as client:
        assert "GET /docs: Not Found" in error(client.get("/docs"), 404)
        assert "GET /openapi.json" in error(client.get("/openapi.json"), 404)
        assert "GET /score: Method Not Allowed" in error(client.get("/score"), 405)
        assert "Not Found" in error(client.post("/"), 404)


def test_a_bug_in_the_server_is_an_error_in_json(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a secret path")

    monkeypatch.setattr("imgrl.rewards.server.unpack", broken)
    with serve() as client:
        assert error(client.post("/score", content=request()), 500) == "the server failed (RuntimeError)"


def test_what_cannot_be_served_is_refused():
    class Learner:
        def __call__(self, images, prompts):
            return bright(images, prompts)

        def learn(self, images, prompts):
            return {}

    with pytest.raises(RewardError, match="'mine' learns from a run's images, so it cannot be served"):
        serve({"mine": Learner()})
    for wrong in ({"most_images": 0}, {"most_bytes": 0}, {"timeout": 0.0}, {"timeout": math.nan}):
        with pytest.raises(ValueError, match="Limits must be positive"):
            serve(**wrong)


def test_answers_are_strict_json():
    with serve() as client:
        text = client.post("/score", content=request()).text
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["identity"] is None
