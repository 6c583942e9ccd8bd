"""Where a reward server may listen and who may ask it: loopback addresses and bearer tokens."""

from __future__ import annotations

import ipaddress
import os

from imgrl.errors import RewardError

__all__ = ["is_loopback", "token_from"]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``; a name other than localhost may lead anywhere."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_from(variable: str) -> str:
    """Return the bearer token that the environment variable holds; no file or command line ever does.

    Raises:
        RewardError: if it is not set, or holds what an HTTP header cannot carry.
    """
    token = os.environ.get(variable, "").strip()
    if not token:
        raise RewardError(
            f"The environment variable {variable} should hold the reward server's token, but it is not set; "
            f"run `export {variable}=...` first."
        )
    if not all("!" <= sign <= "~" for sign in token):
        raise RewardError(
            f"The token in the environment variable {variable} must be printable ASCII without spaces."
        )
    return token
