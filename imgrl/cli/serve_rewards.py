"""``imgrl serve-rewards``: rewards behind HTTP, for runs on other machines or in other environments."""

from __future__ import annotations

import importlib.util
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgrl.cli.common import split_arguments
from imgrl.errors import ConfigError

if TYPE_CHECKING:
    from imgrl.rewards import RewardSet

__all__ = ["serve_rewards"]

_NEEDED = ("fastapi", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class _Served:
    """What is to be served, and what to try it on."""

    specs: dict[str, Any]
    prompts: Any
    size: tuple[int, int]
    cache: str | None = None


def serve_rewards(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="A recipe whose rewards are served, then overrides like rewards.ocr.weight=0.5.",
            show_default=False,
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="Instead of a recipe: a built-in reward or file.py:function; repeatable."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts to try the rewards on (default: the recipe's).")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8700,
    token: Annotated[
        str | None,
        typer.Option(metavar="ENV", help="Environment variable with the token that clients must send."),
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Allow other machines to connect without a token.")
    ] = False,
    most_images: Annotated[int, typer.Option(min=1, help="Images in one request.")] = 256,
    most_mib: Annotated[int, typer.Option(min=1, help="MiB in one request.")] = 256,
    timeout: Annotated[int, typer.Option(min=1, max=86400, help="Seconds for one request.")] = 120,
) -> None:
    """Serve rewards over HTTP; a run uses them as `{use: remote, args: {url: "http://127.0.0.1:8700"}}`."""
    _check_installed()
    secret = _check_access(host, token, open_to_all=open_to_all)
    served = _served(arguments, reward, prompts)
    listener = _bind(host, port)
    from imgrl.rewards.server import create_app

    rewards = _built(served, timeout)
    app = create_app(
        rewards, token=secret, most_images=most_images, most_bytes=most_mib << 20, timeout=timeout
    )
    _run(app, listener, f"serving {', '.join(rewards.rewards)}")


def _check_installed() -> None:
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"imgrl serve-rewards needs {' and '.join(missing)}, not installed here; run `pip install 'imgrl[serve]'`"
        )


def _check_access(host: str, token: str | None, *, open_to_all: bool) -> str | None:
    """Return the token; refuse to let everybody in by accident."""
    from imgrl.rewards.address import is_loopback, token_from

    if token is not None:
        return token_from(token)
    if not is_loopback(host) and not open_to_all:
        raise ConfigError(
            f"--host {host} can be reached from other machines, so a token is expected: give --token with the name of "
            "an environment variable that holds one, or --open to let everybody in"
        )
    return None


def _served(arguments: list[str] | None, reward: list[str] | None, prompts: str | None) -> _Served:
    """Read what is to be served from a recipe or from --reward."""
    from imgrl.config import resolve
    from imgrl.recipe import Data

    if bool(arguments) == bool(reward):
        raise ConfigError(
            "either a recipe or --reward is expected, but "
            + ("both were given" if reward else "neither was given; `imgrl rewards` lists the built-in ones")
        )
    if reward:
        names = [text.rpartition(":")[2] for text in reward]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"every --reward needs a name of its own, but {', '.join(names)} were given; use a recipe"
            )
        specs = dict(zip(names, reward, strict=True))
        return _Served(specs=specs, prompts=prompts or Data().prompts, size=(64, 64))
    name, overrides = split_arguments(arguments)
    if name is None:
        raise ConfigError("overrides change a recipe, but no recipe was given")
    recipe = resolve(name, overrides)
    size = (recipe.model.height or 64, recipe.model.width or 64)
    return _Served(
        specs=dict(recipe.rewards),
        prompts=prompts or recipe.data.prompts,
        size=size,
        cache=recipe.scoring.cache,
    )


def _bind(host: str, port: int) -> socket.socket:
    """Take the port, so that a taken one is known before rewards are loaded; nobody can connect yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"{host} port {port} cannot be listened on ({error.strerror or error}); choose another --host or --port"
        ) from error
    return listener


def _built(served: _Served, timeout: float) -> RewardSet:
    """Build every reward and try it once. Repeating a call is left to the client, which also knows when to stop."""
    from imgrl.data.prompts import load_prompts
    from imgrl.rewards import RewardSet
    from imgrl.rewards.spec import read_spec

    known = load_prompts(served.prompts)
    specs = {name: read_spec(name, given) for name, given in served.specs.items()}
    specs = {
        name: replace(spec, retries=0, timeout=min(spec.timeout or timeout, timeout))
        for name, spec in specs.items()
    }
    rewards = RewardSet(specs, cache=served.cache)
    rewards.check(known, height=served.size[0], width=served.size[1])
    for reward in rewards.rewards.values():
        # From here on the server keeps the time: a call given up in here would go on in its thread beside the next.
        reward.patience = replace(reward.patience, timeout=None)
    return rewards


def _run(app: Any, listener: socket.socket, what: str) -> None:
    import uvicorn

    host, port = listener.getsockname()[:2]
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, limit_concurrency=64, timeout_graceful_shutdown=5
    )
    listener.listen(128)
    typer.echo(f"imgrl: {what} at http://{f'[{host}]' if ':' in host else host}:{port}")
    uvicorn.Server(settings).run(sockets=[listener])
