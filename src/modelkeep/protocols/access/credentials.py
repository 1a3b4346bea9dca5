"""Who a request says it comes from: a user and password, a token, or a browser's session.

Basic (RFC 7617) and Bearer (RFC 6750) are what MLflow's client sends. A token may stand in place of a password,
for tools that know only those.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections.abc import Mapping

from blake3 import blake3
from msgspec import Struct

from modelkeep.registry.access import Accounts, User
from modelkeep.registry.access_secrets import split

COOKIE = "modelkeep_session"
SECURE_COOKIE = "__Host-modelkeep"
"""Under TLS: browsers take such a name only from this host, for all paths, over TLS (RFC 6265bis, 4.1.3.2)."""

VERIFIED_FOR = 15 * 60.0
"""Seconds for which a verified password is not verified again."""

_MOST = 10_000


class Password(Struct, frozen=True):
    """A user's name and the password given for it."""

    user: str
    password: str


class Secret(Struct, frozen=True):
    """A token, or a session when a cookie held it."""

    text: str
    session: bool = False


def given(headers: Mapping[bytes, bytes], *, secure: bool) -> Password | Secret | None:
    """What a request says; None when it says nothing, or nothing that can be read.

    Args:
        headers: By lower-case name.
        secure: Whether requests come over TLS, where the cookie has another name.
    """
    said = headers.get(b"authorization")
    if said is None:
        text = _cookie(headers, SECURE_COOKIE if secure else COOKIE)
        return Secret(text, session=True) if text else None
    scheme, _, rest = said.partition(b" ")
    if scheme.lower() == b"bearer":
        return Secret(rest.strip().decode("latin-1"))
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    if not colon:
        return None
    return Secret(password) if split(password) else Password(user, password)


def has_cookie(headers: Mapping[bytes, bytes], *, secure: bool) -> bool:
    """Whether a cookie, and nothing else, says who asks."""
    return b"authorization" not in headers and bool(_cookie(headers, SECURE_COOKIE if secure else COOKIE))


def _cookie(headers: Mapping[bytes, bytes], name: str) -> str:
    for part in headers.get(b"cookie", b"").decode("latin-1").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""


class Verified:
    """Passwords that were right a moment ago, so that argon2 is not asked at every request.

    What is kept is a digest under a key that only this process knows, and it counts only as long as the account
    has the same hash.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[str, str, float]] = {}
        self.until = float("inf")

    def remember(self, said: Password, user: User) -> None:
        """Keep that the password was right."""
        if len(self._known) >= _MOST:
            self._known.clear()
        now = time.monotonic()
        self._known[self._digest(said)] = (user.name, user.password, now + VERIFIED_FOR)
        self.until = min(self.until, now + VERIFIED_FOR)

    def holds(self, said: Password, accounts: Accounts) -> bool:
        """Whether it was right lately, and still is the account's."""
        found = self._known.get(self._digest(said))
        if found is None or found[2] < time.monotonic():
            return False
        user = accounts.users.get(found[0])
        return user is not None and user.password == found[1]

    def sweep(self) -> bool:
        """Forget what is too old; whether anything was."""
        now = time.monotonic()
        if now < self.until:
            return False
        self._known = {digest: entry for digest, entry in self._known.items() if entry[2] > now}
        self.until = min((entry[2] for entry in self._known.values()), default=float("inf"))
        return True

    def _digest(self, said: Password) -> bytes:
        text = f"{len(said.user)}:{said.user}{said.password}".encode("utf-8", "surrogatepass")
        return blake3(text, key=self._key).digest()
