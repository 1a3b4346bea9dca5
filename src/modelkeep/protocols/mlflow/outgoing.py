"""Requests this server makes because somebody asked it to: only to addresses that everybody may reach.

The name is resolved once, each address it gives is checked, and the connection goes to a checked address itself,
so a name that resolves differently a moment later gains nothing (DNS rebinding). Redirects are not followed.
Source of the threat: OWASP, "Server-Side Request Forgery Prevention Cheat Sheet".
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from modelkeep.core.errors import Invalid, ModelkeepError, Refused, Unavailable

ALLOWED = "MODELKEEP_WEBHOOK_HOSTS"
"""Environment variable: receivers that may be private and speak plain http, as ``host:port,host:port``."""

TIMEOUT = 10.0
_MOST = 64 * 1024
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NEVER = tuple(
    ipaddress.ip_network(each)
    for each in (
        "192.0.0.0/24",  # protocol assignments; clouds answer there with credentials
        "192.88.99.0/24",  # relays of 6to4, given up
        "::/96",  # IPv4 in IPv6, given up
        "::ffff:0:0:0/96",  # IPv4, translated (RFC 7915)
        "64:ff9b:1::/48",  # NAT64 of one's own network (RFC 8215): what it wraps, and where, only that knows
        "3fff::/20",  # for documents (RFC 9637)
        "5f00::/16",  # segments of one's own network (RFC 9602)
        "fec0::/10",  # sites, given up
    )
)
"""What Python's own table of addresses that are not public lacks, in one of the versions that are in use."""
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, the first 64 KiB of the body as text, seconds to wait if it said so."""

    status: int
    body: str
    retry_after: float | None


def check(url: str) -> SplitResult:
    """A URL a webhook may have, as far as can be told without resolving its name.

    Raises:
        Invalid: It is no https URL with a host (or an allowed http one), or holds a password.
        Refused: Its host is an address that not everybody may reach.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid(f"Invalid webhook URL {url[:200]!r}: {error}", path="url") from None
    if any(ord(mark) <= 32 or ord(mark) == 127 for mark in url):
        raise Invalid("Invalid webhook URL: it holds spaces or control characters", path="url")
    schemes = ("https", "http") if _allowed(parts) else ("https",)
    if parts.scheme not in schemes:
        raise Invalid(
            f"Invalid webhook URL scheme: {parts.scheme!r}. Allowed schemes are: {', '.join(schemes)}.",
            path="url",
            hint=f"to reach a private or plain http receiver, name its host:port in {ALLOWED}",
        )
    if not parts.hostname:
        raise Invalid(f"Webhook URL must include a hostname: {url[:200]!r}", path="url")
    if parts.username is not None or parts.password is not None or port == 0:
        raise Invalid("Webhook URL must hold neither a user nor a password, nor port 0", path="url")
    if not _allowed(parts):
        try:
            literal = ipaddress.ip_address(parts.hostname)
        except ValueError:
            return parts
        _public(literal, parts.hostname)
    return parts


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout: float = TIMEOUT) -> Answer:
    """POST to a URL that may be asked.

    Raises:
        Invalid, Refused: As ``check``; or the name resolves to an address not everybody may reach.
        Unavailable: Nobody answered in time.
    """
    parts = check(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection = _connect(parts, timeout)
    except OSError as error:
        raise Unavailable(f"{parts.hostname} cannot be reached: {error}") from None
    try:
        connection.request("POST", path, body, {"host": parts.netloc, **headers})
        answer = connection.getresponse()
        text = answer.read(_MOST).decode("utf-8", "replace")
        after = answer.headers.get("retry-after", "")
        return Answer(answer.status, text, float(after) if after.isascii() and after.isdigit() else None)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{parts.hostname} did not answer: {str(error) or type(error).__name__}") from None
    finally:
        connection.close()


def _allowed(parts: SplitResult) -> bool:
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.hostname}:{port}" in {one.strip() for one in os.environ.get(ALLOWED, "").split(",")}


def _connect(parts: SplitResult, timeout: float) -> http.client.HTTPConnection:
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    if not _allowed(parts):
        for *_, address in found:
            _public(ipaddress.ip_address(str(address[0]).partition("%")[0]), parts.hostname)
    fault: OSError = ConnectionError("the name has no address")
    for family, kind, number, _, address in found:
        sock = socket.socket(family, kind, number)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
            if parts.scheme == "https":
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
        except OSError as error:
            sock.close()
            fault = error
            continue
        connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout)
        connection.sock = sock
        return connection
    raise fault


def _public(address: _Address, host: str) -> None:
    """Raises ``Refused`` unless everybody may reach the address or the IPv4 one it wraps (RFC 4291, RFC 6052)."""
    inner: _Address | None = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    for one in (address,) if inner is None else (inner,):
        never = any(one.version == network.version and one in network for network in _NEVER)
        if never or not one.is_global or one.is_multicast or one.is_reserved:
            raise Refused(
                f"Webhook URL must not lead to {host}: {address} is not a public address",
                hint=f"to reach a private receiver, name its host:port in {ALLOWED}",
            )


def why(error: ModelkeepError) -> str:
    """An error in one line, for the webhook's record."""
    return error.message[:500]
