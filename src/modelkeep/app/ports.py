"""Ports that a program listens on, taken before anything else begins; an error names the option."""

from __future__ import annotations

import socket

from modelkeep.core.errors import Unavailable


def claim(host: str, port: int, option: str) -> socket.socket:
    """A port that the fleet will share among its processes in a moment, and that nobody else gets until then.

    It listens, as sockets that are only bound do not keep others out, and is open to sharing only afterwards, so
    that a port which somebody shares counts as taken.
    """
    claimed = bind(host, port, option)
    try:
        claimed.listen()
    except OSError as error:
        claimed.close()
        raise _taken(host, port, option, error) from error
    claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return claimed


def bind(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise _taken(host, port, option, error) from error
    return bound


def _taken(host: str, port: int, option: str, error: OSError) -> Unavailable:
    return Unavailable(
        f"{option} {port} on {host}: {error.strerror}", hint=f"choose another, or {option} 0 for a free one"
    )
