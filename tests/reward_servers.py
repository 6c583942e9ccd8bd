"""Reward servers for tests, on real sockets: ours under uvicorn, and impostors that answer whatever they are told."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import imgrl  # noqa: F401


def free_port():
    """A port that nobody listens on, for a server that comes back under the same address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Uvicorn:
    """A served application that can be ended and started again at the same address."""

    def __init__(self, app, port=None):
        self.app, self.port = app, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        import uvicorn

        config = uvicorn.Config(
            self.app, host="127.0.0.1", port=self.port, log_level="critical", access_log=False
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started, "the server did not start")

    def stop(self):
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()


def serve_file(port, file):
    """Serve ``reward`` of a Python file for ever; for a process of its own, which can really be killed."""
    import uvicorn

    from imgrl.rewards import RewardSet
    from imgrl.rewards.server import create_app

    rewards = RewardSet.from_specs({"mine": {"use": f"{file}:reward", "retries": 0}})
    uvicorn.run(create_app(rewards), host="127.0.0.1", port=port, log_level="critical", access_log=False)


def wait_until(condition, complaint, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.01)


def answers(port):
    """Whether something accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def impostor(answer):
    """Yield the address of a server and the requests it got; ``answer(handler)`` writes each response by hand."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.command, self.path, dict(self.headers), body))
            try:
                answer(self)
            except OSError:
                pass  # the client has had enough

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def reply(handler, body, status=200, **headers):
    """A whole response."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


VERSION = {
    "protocol": 1,
    "most_images": 256,
    "most_bytes": 1 << 20,
    "rewards": [{"name": "r", "weight": 1.0, "groupwise": False, "identity": None}],
    "sum": {"groupwise": False, "identity": None},
}


def greeting(then, **changes):
    """An answer of an impostor that introduces itself well and then does ``then``."""

    def answer(handler):
        if handler.path.endswith("/version"):  # a proxy is asked for the whole address
            reply(handler, json.dumps({**VERSION, **changes}).encode())
        else:
            then(handler)

    return answer
