"""What somebody is told who is not let in, in one body that every door's clients read."""

from __future__ import annotations

import math

import msgspec
from msgspec import Struct

_CHALLENGE = b'Basic realm="modelkeep", charset="UTF-8", Bearer realm="modelkeep"'


class Refusal(Struct, frozen=True):
    """Why a request is not answered.

    Attributes:
        status: HTTP status.
        code: MLflow's name for it.
        message: For people.
        headers: That go with it.
    """

    status: int
    code: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def body(self) -> bytes:
        """JSON with the field each kind of client looks for: ``error_code`` and ``message``, or ``error``."""
        said = self.message.encode("utf-8", "replace").decode()
        return msgspec.json.encode({"error_code": self.code, "message": said, "error": said})

    def lines(self) -> bytes:
        """The headers as lines."""
        return b"".join(b"%s: %s\r\n" % pair for pair in self.headers)

    def lean(self) -> tuple[int, bytes, bytes]:
        """As the lean protocol takes it."""
        return self.status, self.body(), self.lines()


def unknown(message: str = "", *, browser: bool = False) -> Refusal:
    """401 (RFC 9110, 15.5.2): nobody known asks. Browsers' scripts get no challenge: it would open a dialogue."""
    said = message or (
        "say who you are: a user and password (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD) or a token"
        " (MLFLOW_TRACKING_TOKEN); in a browser, sign in at /sign-in"
    )
    return Refusal(401, "UNAUTHENTICATED", said, () if browser else ((b"www-authenticate", _CHALLENGE),))


def forbidden(message: str) -> Refusal:
    """403: it is known who asks, and they may not."""
    return Refusal(403, "PERMISSION_DENIED", message)


def too_often(wait: float, what: str) -> Refusal:
    """429 (RFC 6585, section 4) with the seconds to wait."""
    seconds = max(1, math.ceil(wait))
    said = f"{what}; try again in {seconds} s"
    return Refusal(429, "REQUEST_LIMIT_EXCEEDED", said, ((b"retry-after", str(seconds).encode()),))
