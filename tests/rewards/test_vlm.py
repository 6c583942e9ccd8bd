"""The vision-language reward against a real server in a thread that imitates a chat endpoint."""

import base64
import io
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("httpx")
from imgrl.errors import RewardError  # noqa: E402
from imgrl.rewards import RewardSet  # noqa: E402
from imgrl.rewards.pixels import to_uint8  # noqa: E402
from imgrl.rewards.vlm import Vlm  # noqa: E402
from imgrl.types import Prompt  # noqa: E402


def says(text, logprobs=None):
    choice = {"message": {"role": "assistant", "content": text}}
    if logprobs is not None:
        rivals = [{"token": token, "logprob": math.log(p)} for token, p in logprobs.items()]
        choice["logprobs"] = {"content": [{"token": rivals[0]["token"], "top_logprobs": rivals}]}
    return 200, json.dumps({"choices": [choice]}), {}


class Endpoint:
    """Answers as the test says: ``answer(prompt, times asked before)`` -> status, body, headers."""

    def __init__(self):
        self.answer = lambda prompt, before: says("yes")
        self.asked, self.requests, self.headers = [], [], []
        self.under_way = self.most = 0
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                endpoint.reply(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def reply(self, handler):
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = request["messages"][0]["content"][1]["text"].split('"')[1]
        with self.lock:
            before = self.asked.count(prompt)
            self.asked.append(prompt)
            self.requests.append((handler.path, request))
            self.headers.append(handler.headers)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            status, body, headers = self.answer(prompt, before)
        finally:
            with self.lock:
                self.under_way -= 1
        try:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body.encode())
        except OSError:
            pass  # the client had waited long enough


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()


def score(endpoint, images, texts, *, retries=0, batch=None, **args):
    """Through the same door as in training: values, and how many images failed."""
    settings = {"url": endpoint.url, "model": "m", "backoff": 0.0} | args
    spec = {"use": "vlm", "args": settings, "retries": retries, "backoff": 0.0, "batch": batch}
    rewards = RewardSet.from_specs({"vlm": spec}, failure_budget=1.0)
    prompts = [Prompt(id=i, text=text) for i, text in enumerate(texts)]
    scores = rewards.score(images, prompts)
    return scores.values["vlm"], scores.failures["vlm"]


def test_the_request(endpoint, noise, monkeypatch):
    monkeypatch.setenv("VLM_KEY_FOR_TEST", "secret")
    images = noise(1, 24, 40)
    body = {"seed": 3, "temperature": None}
    score(endpoint, images, ["a {low} cat"], key="VLM_KEY_FOR_TEST", max_tokens=5, body=body)
    path, request = endpoint.requests[0]
    assert path == "/v1/chat/completions" and endpoint.headers[0]["Authorization"] == "Bearer secret"
    expected = {"model": "m", "max_tokens": 5, "logprobs": True, "top_logprobs": 20, "seed": 3}
    assert {key: value for key, value in request.items() if key != "messages"} == expected
    picture, text = request["messages"][0]["content"]
    assert '"a {low} cat"' in text["text"]  # braces in a prompt mean nothing
    kind, data = picture["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    sent = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.array_equal(sent, to_uint8(images)[0])


def test_yes_and_no(endpoint, noise):
    """With probabilities their ratio over every spelling; without them the word."""
    answers = {
        "sure": says("Yes", {"Yes": 0.5, " yes": 0.2, "No": 0.1, "Maybe": 0.2}),
        "unsure": says("no", {"no": 0.6, "YES": 0.2}),
        "plain": says(" Yes.\n"),
        "denied": says("NO"),
    }
    endpoint.answer = lambda prompt, before: answers[prompt]
    values, failed = score(endpoint, noise(4), list(answers))
    assert failed == 0
    assert values.tolist() == pytest.approx([0.7 / 0.8, 0.2 / 0.8, 1.0, 0.0])


def test_scores_in_their_range(endpoint, noise):
    endpoint.answer = lambda prompt, before: says({"low": "1", "middle": " 3\n", "high": "5.0"}[prompt])
    values, failed = score(endpoint, noise(3), ["low", "middle", "high"], mode="score", low=1, high=5)
    assert values.tolist() == [0.0, 0.5, 1.0] and failed == 0
    assert "from 1 to 5" in endpoint.requests[0][1]["messages"][0]["content"][1]["text"]
    assert "logprobs" not in endpoint.requests[0][1]


@pytest.mark.parametrize(
    "answer",
    [
        says("7 out of 10"),
        says("11"),
        says("-1"),
        says("nan"),
        says(""),
        says(None),
        (200, "not json", {}),
        (200, '{"choices": []}', {}),
        (200, '{"choices": [{"text": "7"}]}', {}),
        (200, "[" * 100_000, {}),
        (200, "x" * (1 << 21), {}),
        (400, "no such model", {}),
        (302, "", {"Location": "http://127.0.0.1:1/"}),
    ],
    ids=lambda answer: f"{answer[0]} {answer[1][-30:]}",
)
def test_garbage_masks_the_image_and_is_never_a_zero(endpoint, noise, answer):
    endpoint.answer = lambda prompt, before: answer if prompt == "bad" else says("5")
    values, failed = score(endpoint, noise(3), ["good", "bad", "fine"], mode="score", batch=1)
    assert failed == 1
    assert values[[0, 2]].tolist() == [0.5, 0.5] and values[1].isnan()


@pytest.mark.parametrize("text", ["maybe", "There is no cat.", "yes and no", ""])
def test_neither_yes_nor_no(endpoint, noise, text):
    endpoint.answer = lambda prompt, before: says(text)
    _, failed = score(endpoint, noise(1), ["x"])
    assert failed == 1 and len(endpoint.asked) == 3  # two more attempts


def test_a_busy_server_is_asked_again(endpoint, noise):
    states = {"limited": 429, "broken": 503}
    endpoint.answer = lambda prompt, before: (
        (states[prompt], "later", {"Retry-After": "0"}) if before < 2 else says("yes")
    )
    values, failed = score(endpoint, noise(2), ["limited", "broken"])
    assert values.tolist() == [1.0, 1.0] and failed == 0 and len(endpoint.asked) == 6


def test_retry_after_is_heeded(endpoint, noise):
    endpoint.answer = lambda prompt, before: says("yes") if before else (429, "", {"Retry-After": "1"})
    start = time.monotonic()
    score(endpoint, noise(1), ["x"])
    assert time.monotonic() - start >= 1


def test_what_will_not_pass_is_not_asked_again(endpoint, noise):
    endpoint.answer = lambda prompt, before: (401, "who are you", {})
    _, failed = score(endpoint, noise(1), ["x"])
    assert failed == 1 and len(endpoint.asked) == 1


def test_a_slow_server(endpoint, noise):
    def answer(prompt, before):
        time.sleep(0.6 if prompt == "slow" else 0)
        return says("yes")

    endpoint.answer = answer
    start = time.monotonic()
    values, failed = score(endpoint, noise(2), ["slow", "quick"], timeout=0.3, retries=0, batch=1)
    assert failed == 1 and values[1] == 1 and len(endpoint.asked) == 4
    assert time.monotonic() - start < 3


def test_no_server():
    reward = RewardSet.from_specs(
        {
            "vlm": {
                "use": "vlm",
                "args": {"url": "http://127.0.0.1:9/v1", "model": "m", "backoff": 0},
                "retries": 0,
            }
        }
    )
    with pytest.raises(RewardError, match="probe of two flat images .*2 of 2 images have no .*ConnectError"):
        reward.check([Prompt(id=0, text="x")])


def test_a_repeated_call_asks_only_for_what_is_lacking(endpoint, noise):
    """The second attempt at the call finds the good answers kept; the same image and prompt is one question."""
    endpoint.answer = lambda prompt, before: says("?") if prompt == "b" and before < 3 else says("yes")
    images = noise(4)
    images[3] = images[0]
    values, failed = score(endpoint, images, ["a", "b", "c", "a"], retries=1)
    assert values.tolist() == [1.0] * 4 and failed == 0
    assert sorted(endpoint.asked) == ["a", "b", "b", "b", "b", "c"]


def test_questions_under_way_are_bounded(endpoint, noise):
    def answer(prompt, before):
        time.sleep(0.02)
        return says("yes")

    endpoint.answer = answer
    score(endpoint, noise(12), [f"p{i}" for i in range(12)], concurrency=3)
    assert len(endpoint.asked) == 12 and 1 < endpoint.most <= 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"url": "localhost:8000"}, "looks like http://host:8000/v1, got 'localhost:8000'"),
        ({"key": "NO_SUCH_VARIABLE"}, "The environment variable NO_SUCH_VARIABLE should hold"),
        ({"mode": "stars"}, "mode must be one of yes-no, score, got 'stars'"),
        ({"low": 5, "high": 5}, "Expected low < high"),
        ({"retries": -1}, "Expected max_tokens >= 1, concurrency >= 1"),
    ],
)
def test_settings_are_checked(changes, sentence):
    with pytest.raises((RewardError, ValueError), match=sentence):
        Vlm(**({"url": "http://127.0.0.1:9/v1", "model": "m"} | changes))


def test_answers_are_kept_within_bounds(endpoint, monkeypatch):
    monkeypatch.setattr("imgrl.rewards.vlm._MOST_KEPT", 3)
    reward = Vlm(url=endpoint.url, model="m")
    reward._remember({(b"", str(i)): 1.0 for i in range(5)}, keep=[(b"", "0"), (b"", "4")])
    assert set(reward._known) == {(b"", "0"), (b"", "3"), (b"", "4")}
