"""How a server is kept safe: who must say who they are, over what, and under which names it answers."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelkeep.core.errors import Invalid, Refused
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols.access.guard import Guard, Mode
from modelkeep.protocols.access.hosts import allowed, is_loopback
from modelkeep.registry import events


@dataclass(frozen=True, slots=True)
class Protection:
    """What a server's keeper asks for.

    Attributes:
        auth: ``auto``: clients must say who they are as soon as there is a user, and always on an address that
            other machines can reach; ``on``: always; ``off``: never, on a loopback address only.
        tls_cert: PEM file of the certificate and what it was signed with.
        tls_key: PEM file of its key.
        hosts: Names the server answers to beside its own address.
        rate: Requests a second of each user or token that has no limit of its own; 0 for no limit.
        proxies: Addresses or networks of proxies in front: what they say in ``X-Forwarded-For`` and
            ``X-Forwarded-Proto`` counts, and nobody else's.
    """

    auth: Mode = "auto"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    hosts: tuple[str, ...] = ()
    rate: float = 0.0
    proxies: tuple[str, ...] = ()

    @property
    def scheme(self) -> str:
        """``https`` or ``http``."""
        return "https" if self.tls_cert else "http"

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """Certificate and key."""
        return None if self.tls_cert is None or self.tls_key is None else (self.tls_cert, self.tls_key)

    def uvicorn(self) -> dict[str, Any]:
        """TLS and whose word counts on where requests come from, as ``uvicorn.Config`` takes them."""
        said = {"proxy_headers": bool(self.proxies), "forwarded_allow_ips": list(self.proxies)}
        if self.tls_cert is None:
            return said
        return {**said, "ssl_certfile": str(self.tls_cert), "ssl_keyfile": str(self.tls_key)}

    def arguments(self) -> list[str]:
        """The same for the command line of a child."""
        words = ["--auth", self.auth, "--rate", str(self.rate)]
        for name in self.hosts:
            words += ["--allowed-host", name]
        for name in self.proxies:
            words += ["--trusted-proxy", name]
        if self.tls_cert is not None:
            words += ["--tls-cert", str(self.tls_cert), "--tls-key", str(self.tls_key)]
        return words

    def guard(self, accounts: Any, clock: Any, host: str, **options: Any) -> Guard:
        """The guard of a server bound to ``host``. Raises ``Invalid``: a name that is none."""
        names = allowed(host, self.hosts)
        secure = self.tls_cert is not None
        return Guard(accounts, clock, mode=self.auth, hosts=names, secure=secure, rate=self.rate, **options)


def checked(wanted: Protection, host: str, admins: Callable[[], Sequence[str]]) -> Protection:
    """The protection of a server on ``host``: what is asked for, and what the address asks for.

    Args:
        admins: Says who is admin; asked only when other machines can reach the address.

    Raises:
        Refused: Other machines can reach the address, and authentication is off or nobody is admin yet.
        Invalid: A certificate without its key, files that are neither, a name, address or rate that is none.
    """
    if not 0 <= wanted.rate < float("inf"):
        raise Invalid(f"{wanted.rate} is no rate; expected requests a second, 0 for no limit", path="rate_limit")
    _certificate(wanted.tls_cert, wanted.tls_key)
    allowed(host, wanted.hosts)
    _networks(wanted.proxies)
    if is_loopback(host):
        return wanted
    if wanted.auth == "off":
        raise Refused(
            f"--host {host} --auth off: other machines could reach it, and anybody could change everything",
            hint="leave --auth away, or bind 127.0.0.1",
        )
    if not admins():
        raise Refused(
            f"--host {host}: other machines could reach it, so it needs authentication, and there is no admin yet",
            hint="make the first: modelkeep users add NAME --admin",
        )
    return replace(wanted, auth="on")


def noting(keep: Keep) -> Any:
    """What writes a guard's refusals into the history of a home."""

    def note(kind: str, subject: str, data: dict[str, Any], actor: str) -> None:
        now = keep.clock.now()
        keep.db.submit(lambda conn: events.append(conn, kind, subject, data, now=now, actor=actor))

    return note


def warnings(chosen: Protection, host: str) -> Sequence[str]:
    """What its keeper should know before others use the server."""
    if is_loopback(host) or chosen.tls_cert is not None:
        return ()
    return (
        "passwords and tokens cross the network unencrypted: give --tls-cert and --tls-key, or put a proxy that"
        " speaks TLS in front",
    )


def _networks(proxies: Sequence[str]) -> None:
    for each in proxies:
        try:
            ipaddress.ip_network(each, strict=False)
        except ValueError:
            raise Invalid(
                f"{each!r} is no address; expected that of a proxy, as 10.0.0.7, or a network, as 10.0.0.0/24",
                path="trusted-proxy",
            ) from None


def _certificate(cert: Path | None, key: Path | None) -> None:
    if (cert is None) != (key is None):
        raise Invalid("a certificate and its key belong together", path="tls_key" if key is None else "tls_cert")
    if cert is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        raise Invalid(f"{cert} and {key} cannot be used: {error.strerror or error}", path="tls_cert") from None
