"""Which names this server answers to, and whose pages may talk to it.

A browser can be made to send requests here by a page from elsewhere. Two headers that pages cannot forge tell:
``Host``, when a foreign name was pointed at this address (DNS rebinding), and ``Origin``, when the page is foreign
(RFC 6454; OWASP, "Cross-Site Request Forgery Prevention", verifying origin with standard headers).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from modelkeep.core.errors import Invalid

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MOST = 1000
_LONGEST = 1000


class Hosts:
    """The names that are this server's.

    Args:
        names: Beside the loopback names; lower case, without port.
        proxied: Of these, names a proxy in front is known by: its pages' origin may differ from ``Host``.
        addresses: Whether any literal IP address is: no foreign name resolves to one, so that a server bound to
            all addresses may answer to each.
    """

    def __init__(self, names: Iterable[str] = (), *, proxied: Iterable[str] = (), addresses: bool = False) -> None:
        self._proxied = frozenset(name.lower().rstrip(".") for name in proxied)
        self._names = self._proxied.union(name.lower().rstrip(".") for name in names)
        self._addresses = addresses
        self._found: dict[tuple[object, ...], str] = {}

    def fault(self, method: str, headers: Mapping[bytes, bytes], *, cookie: bool = False) -> str:
        """Why a request looks like somebody else's page's; empty when it does not.

        Args:
            headers: By lower-case name.
            cookie: Whether a cookie says who asks. Then a change must say that it comes from this very server.
        """
        get = headers.get
        said = (method in _SAFE, cookie, get(b"host", b""), get(b"origin"), get(b"sec-fetch-site", b""))
        if sum(len(one) for one in said[2:] if one) > _LONGEST:
            return "hosts and origins as long as these are not answered here"
        found = self._found.get(said)  # clients say the same again and again
        if found is None:
            if len(self._found) >= _MOST:
                self._found.clear()
            found = self._found[said] = self._fault(*said)
        return found

    def _fault(self, safe: bool, cookie: bool, name: bytes, origin: bytes | None, site: bytes) -> str:
        host, port = _split(name)
        if not self._ours(host):
            return f"requests for host {host!r} are not answered here"
        if origin is not None:
            scheme, _, rest = origin.partition(b"://")
            if scheme not in (b"http", b"https") or not self._same(_split(rest), (host, port)):
                return f"requests from pages of {origin.decode('latin-1')[:200]!r} are not answered here"
        elif not safe and (site in (b"cross-site", b"same-site") or (cookie and site != b"same-origin")):
            return "changes from another site's pages are not taken here"
        return ""

    def _ours(self, host: str) -> bool:
        if host in _LOOPBACK or host in self._names:
            return True
        if not self._addresses:
            return False
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def _same(self, origin: tuple[str, int | None], host: tuple[str, int | None]) -> bool:
        if origin == host or origin[0] in self._proxied:
            return True
        return origin[0] in _LOOPBACK and host[0] in _LOOPBACK and origin[1] == host[1]


def _split(netloc: bytes) -> tuple[str, int | None]:
    """Host, lower case and without brackets, and port; an empty host for what is neither."""
    try:
        found = urlsplit(f"//{netloc.decode('latin-1')}")
        if found.path or found.query or found.fragment or found.username is not None:
            return "", None
        return (found.hostname or "").rstrip("."), found.port
    except ValueError:
        return "", None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what is bound there."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def allowed(bound: str, names: Iterable[str]) -> Hosts:
    """The names of a server bound to ``bound``, and those its keeper gave it. Raises ``Invalid``.

    On a loopback address only the loopback names count. Elsewhere every literal address does, and the machine's
    own name.
    """
    given = [name.strip() for name in names if name.strip()]
    for name in given:
        if any(mark in name for mark in "/:@*?# \\") or not name.isascii():
            raise Invalid(
                f"{name!r} is no host name; expected a name without scheme and port", path="allowed-hosts"
            )
    if is_loopback(bound):
        return Hosts([bound], proxied=given)
    import socket

    return Hosts([bound, socket.gethostname()], proxied=given, addresses=True)
