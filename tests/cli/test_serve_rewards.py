"""`imgrl serve-rewards`: who may connect, what is refused before anything listens, and one real server."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from imgrl.cli import serve_rewards  # noqa: E402
from imgrl.rewards.remote import Remote  # noqa: E402
from imgrl.rewards.wire import pack  # noqa: E402

BRIGHT = """
import time

def bright(images, prompts):
    return images.mean((1, 2, 3))

def dark(images, prompts, *, level=1.0):
    return 1 - images.mean((1, 2, 3))

def raises(images, prompts):
    raise OSError("no weights")

def sleeps(images, prompts):
    if len(prompts) == 1:  # the check has two images
        time.sleep(3)
    return [0.5] * len(prompts)

class Learner:
    def __call__(self, images, prompts):
        return [0.5] * len(prompts)

    def learn(self, images, prompts):
        return {}
"""


@pytest.fixture(autouse=True)
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(BRIGHT)


@pytest.fixture
def built(imgrl, monkeypatch):
    """Run the command up to where it would serve; returns the application, its socket and what it says."""

    def run(*arguments):
        caught = []
        monkeypatch.setattr(serve_rewards, "_run", lambda *what: caught.append(what))
        result = imgrl("serve-rewards", *arguments, "--port", "0")
        assert result.exit_code == 0, (result.output, result.exception)
        app, listener, said = caught[0]
        listener.close()
        return app, said

    return run


def version(app, **headers):
    pytest.importorskip("httpx2")
    from fastapi.testclient import TestClient

    return TestClient(app).get("/version", headers=headers)


def test_rewards_by_name_and_file(built):
    app, said = built(
        "--reward", "mine.py:bright", "--reward", "shapes", "--most-images", "7", "--most-mib", "2"
    )
    told = version(app).json()
    assert said == "serving bright, shapes"
    assert [entry["name"] for entry in told["rewards"]] == ["bright", "shapes"]
    assert (told["most_images"], told["most_bytes"], told["timeout"]) == (7, 2 * 2**20, 120)


def test_a_recipe_with_overrides(built, tmp_path):
    (tmp_path / "served.yaml").write_text(
        "rewards: {a: {use: 'mine.py:bright', weight: 2.0}, b: {use: 'mine.py:dark', weight: 1.0}}\n"
        "data: {prompts: [a cat, a dog]}\n"
    )
    app, said = built("served.yaml", "rewards.b.weight=0.5", "batch={groups: 2, micro_groups: 2}")
    assert said == "serving a, b"
    assert {e["name"]: e["weight"] for e in version(app).json()["rewards"]} == {"a": 2.0, "b": 0.5}


def test_a_reward_that_outlives_its_request_is_not_called_beside_itself(built):
    pytest.importorskip("httpx2")
    from fastapi.testclient import TestClient

    app, _ = built("--reward", "mine.py:sleeps", "--timeout", "1")
    body = pack(torch.zeros(1, 3, 8, 8), ["a"], {})
    with TestClient(app) as client:
        told = [client.post("/score/sleeps", content=body) for _ in range(2)]
    assert [answer.status_code for answer in told] == [504, 504]
    assert "had no answer within 1 s" in told[0].text and "was busy for 1 s" in told[1].text


def test_a_recipe_brings_its_cache(built, tmp_path):
    (tmp_path / "served.yaml").write_text("rewards: {jpeg_compressibility: 1}\nscoring: {cache: scores.db}\n")
    built("served.yaml")
    assert (tmp_path / "scores.db").is_file()


def test_the_token_comes_from_the_environment(built, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    app, _ = built("--reward", "mine.py:bright", "--token", "MY_TOKEN", "--host", "0.0.0.0")
    assert version(app).status_code == 401
    assert version(app, authorization="Bearer s3cret").status_code == 200


def test_open_is_said_explicitly(built):
    app, _ = built("--reward", "mine.py:bright", "--host", "0.0.0.0", "--open")
    assert version(app).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "either a recipe or --reward is expected, but neither was given"),
        (["tiny-sd3/crd", "--reward", "shapes"], "but both were given"),
        (["run.seed=1"], "overrides change a recipe, but no recipe was given"),
        (["absent.yaml"], "'absent.yaml' is neither a file nor a bundled recipe"),
        (["--reward", "shapse"], "did you mean 'shapes'"),
        (["--reward", "mine.py:bright", "--reward", "x.py:bright"], "a name of its own, but bright, bright"),
        (
            ["--reward", "mine.py:raises"],
            "'raises' failed on a probe of two flat images (OSError: no weights)",
        ),
        (["--reward", "mine.py:Learner"], "'Learner' learns from a run's images, so it cannot be served"),
        (["--reward", "mine.py:bright", "--prompts", "absent.txt"], "absent.txt"),
        (["--reward", "mine.py:bright", "--host", "0.0.0.0"], "a token is expected: give --token"),
        (["--reward", "mine.py:bright", "--host", "::"], "--host :: can be reached from other machines"),
        (["--reward", "mine.py:bright", "--token", "NO_SUCH_TOKEN"], "variable NO_SUCH_TOKEN should hold"),
        (["--reward", "mine.py:bright", "--host", "127.0.0.1.invalid", "--open"], "cannot be listened on"),
    ],
)
def test_refused(refused, arguments, sentence):
    assert sentence in refused("serve-rewards", *arguments, "--port", "0")


def test_a_taken_port_is_said_before_rewards_are_built(refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused("serve-rewards", "--reward", "mine.py:raises", "--port", str(port))
    assert f"127.0.0.1 port {port} cannot be listened on (Address already in use); choose another" in said


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(refused, monkeypatch, missing):
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find_spec(name))
    said = refused("serve-rewards", "--reward", "mine.py:bright")
    assert (
        said
        == f"imgrl: imgrl serve-rewards needs {missing}, not installed here; run `pip install 'imgrl[serve]'`\n"
    )


def test_a_real_server_serves_until_it_is_interrupted(tmp_path):
    command = [
        sys.executable,
        "-m",
        "imgrl.cli.main",
        "serve-rewards",
        "--reward",
        "mine.py:bright",
        "--port",
        "0",
    ]
    server = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job ignores it
    )
    try:
        line = server.stdout.readline()
        assert line.startswith("imgrl: serving bright at http://127.0.0.1:"), (line, server.poll())
        url = line.split()[-1]
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health") as answer:
            assert json.load(answer) == {"status": "ok"}
        assert Remote(url=url, reward="bright")(torch.ones(2, 3, 4, 4), ["a", "b"]) == [1.0, 1.0]
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130
        assert server.stdout.read() == "" and server.stderr.read() == "imgrl: interrupted\n"
    finally:
        server.kill()
        server.communicate()
