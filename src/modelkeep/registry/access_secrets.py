"""Passwords and tokens: how they are made, kept and compared.

Passwords are chosen by people and few, so each guess must be dear: argon2id (RFC 9106, its second recommended
setting: 64 MiB, 3 passes), about a tenth of a second. Tokens are 256 random bits: nobody guesses them, however
fast a guess is, so BLAKE3 keeps them unreadable at no cost for those who ask thousands of times a second.
"""

from __future__ import annotations

import hmac
import re
import secrets
import unicodedata

from blake3 import blake3

from modelkeep.core.errors import Invalid

MIN_PASSWORD = 12
MAX_PASSWORD = 1024
_PREFIX = "mk_"
_TOKEN = re.compile(r"mk_(?P<key>[0-9a-f]{16})_(?P<secret>[A-Za-z0-9_\-]{43})\Z")

_NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$n07rl4ZEK6ZXyfwDRZOhpw$8JNB/M6bYfMEW1BfAGHjQOiX1Z9GLEv9g33Bb8oKjnM"
"""Verified when there is no such user, so that the time an answer takes does not tell who has an account."""


def hash_password(password: str) -> str:
    """The PHC string of a password, salted. Raises ``Invalid``: too short or too long."""
    from argon2 import PasswordHasher

    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise Invalid(
            f"has {len(password)} characters; expected {MIN_PASSWORD} to {MAX_PASSWORD}", path="password"
        )
    return PasswordHasher().hash(_normal(password))


def verify_password(hashed: str, password: str) -> bool:
    """Whether it is the password; False, as slowly, for an account without one."""
    from argon2 import PasswordHasher
    from argon2.exceptions import Argon2Error, InvalidHashError

    if len(password) > MAX_PASSWORD:
        return False
    try:
        PasswordHasher().verify(hashed or _NOBODY, _normal(password))
    except (Argon2Error, InvalidHashError):
        return False
    return bool(hashed)


def _normal(password: str) -> bytes:
    """One spelling, whatever keyboard it came from (NIST SP 800-63B, section 3.1.1.2: NFKC)."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def mint() -> tuple[str, str, str]:
    """A new token: its public half, the digest that is kept, and the token itself, which is told once."""
    key, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return key, _digest(secret), f"{_PREFIX}{key}_{secret}"


def split(token: str) -> tuple[str, str] | None:
    """The public half of a token and the digest of the other; None for what is no token."""
    found = _TOKEN.match(token)
    return None if found is None else (found["key"], _digest(found["secret"]))


def same(a: str, b: str) -> bool:
    """Whether two digests are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(a, b)


def _digest(secret: str) -> str:
    return blake3(secret.encode("ascii")).hexdigest()
