"""The client of a reward server, against ours, and against whatever may be at a wrong address."""

import time

import pytest
import torch
from reward_servers import Uvicorn, free_port, greeting, impostor, reply

from imgrl.errors import RewardError
from imgrl.rewards import RewardSet
from imgrl.rewards.remote import Remote
from imgrl.rewards.wire import WireError
from imgrl.types import Prompt

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
from imgrl.rewards.server import create_app  # noqa: E402

IMAGES = torch.tensor([0.0, 51 / 255, 102 / 255, 1.0]).view(4, 1, 1, 1).expand(4, 3, 4, 4)
TEXTS = ["a", "b", "c", "d"]
PROMPTS = [Prompt(id=i, text=text, columns={"level": i}) for i, text in enumerate(TEXTS)]
MEANS = pytest.approx([0.0, 0.2, 0.4, 1.0], abs=1e-6)


def bright(images, prompts):
    return images.mean((1, 2, 3))


def by_level(images, prompts, *, level):
    return [None if x == 1 else 10.0 * x for x in level]


def app(specs, **settings):
    return create_app(RewardSet.from_specs(specs), **settings)


def silence(handler):
    time.sleep(1)


def ask(url, **settings):
    return Remote(url=url, **settings)(IMAGES, TEXTS)


# ------------------------------------------------------------------ our own server


def test_scores_come_back_by_name_and_summed():
    specs = {"bright": {"use": bright, "weight": 2.0}, "level": {"use": by_level, "weight": 1.0}}
    with Uvicorn(app(specs)) as server:
        assert Remote(url=server.url, reward="bright")(IMAGES, TEXTS, level=[0, 1, 2, 3]) == MEANS
        level = Remote(url=f"{server.url}/", reward="level")(IMAGES, TEXTS, level=[0, 1, 2, 3])
        assert level == [0, None, 20, 30]
        total = Remote(url=server.url)(IMAGES, TEXTS, level=[0, 1, 2, 3])
        assert total == pytest.approx([0.0, 0.4, 20.8, 32.0], abs=1e-5)


def test_a_recipe_uses_it_like_any_reward():
    with Uvicorn(app({"level": by_level})) as server:
        rewards = RewardSet.from_specs(
            {
                "far": {
                    "use": "remote",
                    "weight": 0.5,
                    "batch": 3,
                    "args": {"url": server.url, "reward": "level"},
                }
            }
        )
        rewards.check(PROMPTS)
        scores = rewards.score(IMAGES, PROMPTS)
    assert scores.total[[0, 2, 3]].tolist() == [0.0, 10.0, 15.0]
    assert scores.mask.tolist() == [True, False, True, True] and scores.failures == {"far": 0}


def test_the_servers_limits_split_a_call():
    calls = []

    def counted(images, prompts):
        calls.append(len(prompts))
        return images.mean((1, 2, 3))

    with Uvicorn(app({"r": counted}, most_images=3)) as server:
        assert ask(server.url) == MEANS
    assert calls == [3, 1]
    large = torch.zeros(4, 3, 64, 64)  # 12 kB each
    with Uvicorn(app({"r": counted}, most_bytes=40_000)) as server:
        assert Remote(url=server.url)(large, TEXTS) == [0.0] * 4
    assert calls == [3, 1, 2, 2]


def test_a_groupwise_reward_stays_groupwise():
    class Rank:
        groupwise = True

        def __call__(self, images, prompts):
            return images.mean((1, 2, 3)).argsort().argsort().float()

    with Uvicorn(app({"rank": Rank()})) as server:
        rewards = RewardSet.from_specs(
            {"far": {"use": "remote", "args": {"url": server.url, "reward": "rank"}}}
        )
        scores = rewards.score(IMAGES, PROMPTS, group=torch.tensor([0, 1, 1, 0]), group_size=2)
    assert scores.total.tolist() == [0.0, 0.0, 1.0, 1.0]  # ranks within each group of two


def test_the_token_is_checked_at_once(monkeypatch):
    with Uvicorn(app({"bright": bright}, token="s3cret")) as server:
        with pytest.raises(
            RewardError, match="cannot be used .the server answered 401: this server wants its token"
        ):
            Remote(url=server.url)
        with pytest.raises(RewardError, match="environment variable NO_SUCH_TOKEN should hold"):
            Remote(url=server.url, token="NO_SUCH_TOKEN")
        monkeypatch.setenv("RIGHT_TOKEN", "s3cret")
        assert ask(server.url, token="RIGHT_TOKEN") == MEANS


def test_an_unknown_reward_is_named_with_those_there_are():
    with (
        Uvicorn(app({"bright": bright, "dark": bright})) as server,
        pytest.raises(RewardError, match="has no reward 'brigth'; it has bright, dark"),
    ):
        Remote(url=server.url, reward="brigth")


def test_a_failure_on_the_server_is_told_here():
    def broken(images, prompts):
        raise OSError("no weights")

    with (
        Uvicorn(app({"r": {"use": broken, "retries": 0}})) as server,
        pytest.raises(WireError, match=r"answered 503: reward 'r' failed \(OSError: no weights\)"),
    ):
        ask(server.url)


def test_a_server_that_comes_back_with_another_reward_is_noticed():
    port = free_port()
    with Uvicorn(app({"r": {"use": "jpeg_compressibility"}}), port) as server:
        remote = Remote(url=server.url, reward="r")
        assert remote.cacheable and len(remote(IMAGES, TEXTS)) == 4
    with (
        Uvicorn(app({"r": {"use": "jpeg_incompressibility"}}), port),
        pytest.raises(WireError, match="restarted with another reward"),
    ):
        remote(IMAGES, TEXTS)


def test_a_loopback_address_goes_through_no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")  # where nobody is
    monkeypatch.delenv("no_proxy", raising=False)
    with Uvicorn(app({"bright": bright})) as server:
        assert ask(server.url) == MEANS


def test_another_address_goes_through_the_proxy(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with impostor(greeting(lambda h: reply(h, b'{"scores": [1, 2, 3, 4]}'))) as (url, seen):
        monkeypatch.setenv("http_proxy", url)
        assert ask("http://reward.example:8700") == [1, 2, 3, 4]
    assert [path for _, path, _, _ in seen] == [
        f"http://reward.example:8700/{page}" for page in ("version", "score")
    ]


# ------------------------------------------------------------------ wrong servers at the start


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8700",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://me:pw@host",
        "http://host?x=1",
        "http://[::1",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_address(url):
    with pytest.raises(RewardError, match="looks like http://host:8700, got"):
        Remote(url=url)


@pytest.mark.parametrize("wrong", [{"timeout": 0.0}, {"greeting": -1.0}, {"most_bytes": 0}])
def test_wrong_limits(wrong):
    with pytest.raises(ValueError, match="Expected timeout > 0"):
        Remote(url="http://127.0.0.1:1", **wrong)


def test_nobody_there_is_said_before_anything_expensive():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        RewardError, match=rf"reward server {url} cannot be used .*[Rr]efused.*check the address"
    ):
        RewardSet.from_specs({"far": {"use": "remote", "args": {"url": url}}})


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda h: reply(h, b"<html>hello</html>"), "answered 200 and no JSON: b'<html>"),
        (lambda h: reply(h, b"[1]"), "no JSON object"),
        (lambda h: reply(h, b"{}"), "speaks protocol None, this version of imgrl 1"),
        (greeting(None, protocol=2), "speaks protocol 2, this version of imgrl 1"),
        (greeting(None, rewards=3), "no reward server of imgrl"),
        (greeting(None, sum=[]), "no reward server of imgrl"),
        (greeting(None, most_images="many"), "invalid literal"),
        (lambda h: reply(h, b"{}", 302, Location="http://127.0.0.1:1/version"), "answered 302"),
        (lambda h: reply(h, b'{"error": "not here"}', 404), "answered 404: not here"),
        (lambda h: h.wfile.write(b"220 smtp ready\r\n"), "220 smtp"),
        (lambda h: None, "closed connection|reset"),
        (silence, "timed out"),
    ],
)
def test_a_wrong_server_is_refused_at_construction(answer, sentence):
    with (
        impostor(answer) as (url, _),
        pytest.raises(RewardError, match=f"server {url} cannot be used .*({sentence}).*; check the address"),
    ):
        Remote(url=url, greeting=0.3 if answer is silence else 30.0)
