"""The guard of a serving process: before the lean protocol, ASGI and gRPC alike, and at each endpoint.

The entrances find out who asks. Whether they may is asked when a door looks up the endpoint a request names: so
one place decides for every protocol, also for those that name it inside of their messages.
"""

from __future__ import annotations

from typing import Any

from starlette.middleware import Middleware

from modelkeep.core.errors import Refused
from modelkeep.protocols.access import asgi
from modelkeep.protocols.access.guard import Guard, Pass
from modelkeep.protocols.access.needs import CALLS, PUBLIC, SERVING
from modelkeep.protocols.access.refusals import Refusal, unknown
from modelkeep.serve.http import Head

Lean = tuple[int, bytes, bytes]


class Doorman:
    """Lets requests in.

    Args:
        guard: Who may what.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def leave(self, head: Head) -> bool:
        """Whether a hot request is left to the application, which has time to verify a password."""
        asgi.enter(None)  # looking whether there is an endpoint is nobody's request yet
        found = self.guard.judge(head.method.decode("latin-1"), head.headers)
        head.who = found if isinstance(found, Pass) else None
        return found is None

    def nobody(self, head: Head) -> bool:
        """Whether nobody need say who they are; should that change, the head is looked up anew."""
        return head.who is not None and head.who.who is None

    def admit(self, head: Head) -> Lean | None:
        """The refusal of a hot request that is not ``free``; None to let it in."""
        found = self._find(head.who, head.method.decode("latin-1"), head.headers)
        if isinstance(found, Refusal):
            return found.lean()
        head.who = found
        asgi.enter(found.who)
        return None

    def admit_call(self, head: Any) -> tuple[int, str] | None:
        """The HTTP status and message of a gRPC call's refusal; its ``who`` is set when it is let in.

        Args:
            head: With ``headers`` by name and ``who``.
        """
        need = CALLS.get(head.path.rpartition(b"/")[2].decode("latin-1"))
        if need is PUBLIC:
            return None
        headers = head.headers
        if b"host" not in headers:
            headers = {**headers, b"host": headers.get(b":authority", b"")}
        found = self._find(head.who, "POST", headers)
        if isinstance(found, Refusal):
            return found.status, found.message
        head.who = found
        if need is not None and found.who is not None:
            try:
                self.guard.require(found.who, need.right, need.kind)
            except Refused as error:
                return 403, str(error)
        return None

    def enter(self, head: Any) -> None:
        """Know who asks, for the message that is handled now."""
        asgi.enter(None if head.who is None else head.who.who)

    def allowed(self, endpoint: str, named: str) -> None:
        """Whether whoever asks may see an endpoint or ask it. Raises ``Refused`` with what they named."""
        who = asgi.asking()
        if who is None or who.may("predict", "endpoint", endpoint) or who.may("read", "endpoint", endpoint):
            return
        raise Refused(
            f"{who.name} may not predict on endpoint:{named[:200]}",
            hint=f"an admin can allow it: modelkeep roles grant {who.user} reader --on endpoint:{named[:200]}",
        )

    def middleware(self) -> Middleware:
        """The same before an ASGI application."""
        return Middleware(asgi.Guarded, guard=self.guard, needs=SERVING)

    def _find(self, known: Pass | None, method: str, headers: Any) -> Pass | Refusal:
        if known is None or known.epoch is not self.guard.current():
            found = self.guard.judge(method, headers)
            if found is None:
                return unknown("send a token here: a password takes too long to verify")
            if isinstance(found, Refusal):
                return found
            known = found
        return known.turn() or known
