"""What clients carry for the server between requests, sealed so that nobody can make it up."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from modelkeep.core.errors import Invalid


class Seals:
    """Sealed tokens (HMAC-SHA-256, RFC 2104) of this process: after a restart none of them is known.

    Args:
        now: Seconds since 1970 UTC.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._key = secrets.token_bytes(32)
        self._now = now

    def token(self, kind: str, said: Mapping[str, Any], lifetime: float) -> str:
        """What is said, for ``lifetime`` seconds, in letters that a URL may hold. No two are equal.

        Args:
            kind: What it is for, such as ``upload``: it opens nothing else.
            said: What it carries.
            lifetime: Seconds it is good for.
        """
        held = {**said, "until": self._now() + lifetime, "nonce": secrets.token_hex(8)}
        body = base64.urlsafe_b64encode(msgspec.json.encode(held)).decode()
        return f"{body}.{self.mark(kind, body)}"

    def opened(self, token: str, name: str, kind: str) -> dict[str, Any]:
        """What a token says.

        Args:
            name: What the token is called in errors.
            kind: What it must have been made for, such as ``upload``.

        Raises:
            Invalid: It was not made here, or for something else, or too long ago.
        """
        body, _, mark = token.partition(".")
        if not hmac.compare_digest(mark.encode(), self.mark(kind, body).encode()):
            raise Invalid(f"{name}: is of no {kind} that this server has begun", hint="begin it again")
        said: dict[str, Any] = msgspec.json.decode(base64.urlsafe_b64decode(body))
        if said["until"] < self._now():
            raise Invalid(f"{name}: this {kind} was begun too long ago", hint="begin it again")
        return said

    def mark(self, kind: str, text: str) -> str:
        """The seal alone of a text; ``kind`` is what it is for."""
        return hmac.new(self._key, f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()[:32]
