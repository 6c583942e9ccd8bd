"""Two processes on gloo that know each other, for tests of what happens between them."""

import socket

from small_runs import start


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def two(target, *arguments):
    """Run ``target(*arguments)`` in two processes that know each other; both must succeed."""
    assert exit_codes(target, *arguments) == [0, 0]


def exit_codes(target, *arguments):
    """How ``target(*arguments)`` ends in each of two processes that know each other."""
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    ranks = [start(target, *arguments, RANK=str(r), LOCAL_RANK=str(r), **common) for r in range(2)]
    for process in ranks:
        process.join(120)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return codes


def command(arguments):
    """A target: an `imgrl` command."""
    from imgrl.cli.main import app

    code = app([str(argument) for argument in arguments], standalone_mode=False)
    assert not code, f"exit code {code}"
