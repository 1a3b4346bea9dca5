"""Roles, scopes and what they allow: pure, and deny by default.

A role gives rights on everything, on all things of a kind, or on one thing. A token's scopes narrow what its user
may. What no grant allows is refused (Saltzer and Schroeder, "The protection of information in computer systems",
Proc. IEEE 63, 1975: fail-safe defaults, least privilege).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from modelkeep.core.errors import Invalid, Problem

RIGHTS: Final = ("read", "predict", "write", "deploy", "approve", "admin")

ROLES: Final[dict[str, frozenset[str]]] = {
    "reader": frozenset({"read", "predict"}),
    "writer": frozenset({"read", "predict", "write"}),
    "deployer": frozenset({"read", "predict", "deploy"}),
    "approver": frozenset({"read", "approve"}),
    "admin": frozenset(RIGHTS),
}
"""What each role may do where it was granted.

``read`` looks, ``predict`` asks an endpoint, ``write`` logs, registers and deletes, ``deploy`` moves aliases,
stages and traffic, ``approve`` sets and takes away the tags that say a version is approved, ``admin`` is all that.
"""

KINDS: Final = ("experiment", "model", "endpoint")
EVERYTHING: Final = "everything"
ALL: Final = "*"

_SCOPE = re.compile(r"(?P<right>[a-z]+)(?:@(?P<on>.+))?\Z", re.DOTALL)


class Place(Struct, frozen=True, order=True):
    """Where a right holds: everything, all of a kind (name ``*``), or one thing.

    Attributes:
        kind: ``everything``, ``experiment``, ``model`` or ``endpoint``.
        name: An experiment's number, a model's or an endpoint's name; ``*`` for all of the kind.
    """

    kind: str = EVERYTHING
    name: str = ALL

    def __str__(self) -> str:
        return self.kind if self.kind == EVERYTHING else f"{self.kind}:{self.name}"


def place(text: str) -> Place:
    """``everything``, ``model:flights``, ``experiment:*``. Raises ``Invalid``."""
    if text == EVERYTHING:
        return Place()
    kind, colon, name = text.partition(":")
    if kind not in KINDS or not colon or not name:
        raise Invalid(
            f"{text[:200]!r} is no place; expected everything, or KIND:NAME with KIND one of {', '.join(KINDS)}"
            " and NAME * for all of it",
            path="on",
        )
    return Place(kind, name)


class Reach:
    """Rights by where they hold."""

    __slots__ = ("everywhere", "kinds", "named")

    def __init__(self, given: Iterable[tuple[Iterable[str], Place]]) -> None:
        everywhere: set[str] = set()
        self.kinds: dict[str, set[str]] = {}
        self.named: dict[tuple[str, str], set[str]] = {}
        for rights, where in given:
            if where.kind == EVERYTHING:
                everywhere.update(rights)
            elif where.name == ALL:
                self.kinds.setdefault(where.kind, set()).update(rights)
            else:
                self.named.setdefault((where.kind, where.name), set()).update(rights)
        self.everywhere = frozenset(everywhere)

    def allows(self, right: str, kind: str = EVERYTHING, name: str = ALL) -> bool:
        """Whether the right holds there; on ``everything`` only if it was given there."""
        return (
            right in self.everywhere
            or right in self.kinds.get(kind, ())
            or (name != ALL and right in self.named.get((kind, name), ()))
        )

    def names(self, right: str, kind: str) -> frozenset[str] | None:
        """The things of a kind for which the right holds; None for all."""
        if right in self.everywhere or right in self.kinds.get(kind, ()):
            return None
        return frozenset(name for (of, name), rights in self.named.items() if of == kind and right in rights)


def of_roles(grants: Iterable[tuple[str, Place]]) -> Reach:
    """The reach of (role, place) pairs; a role that is not known gives nothing."""
    return Reach((ROLES.get(role, frozenset()), where) for role, where in grants)


def of_scopes(scopes: Sequence[str]) -> Reach | None:
    """The reach of scopes; None when there are none, which narrows nothing. Raises ``Invalid``."""
    if not scopes:
        return None
    given, problems = [], []
    for at, text in enumerate(scopes):
        found = _SCOPE.match(text)
        if found is None or found["right"] not in RIGHTS:
            expected = f"expected RIGHT or RIGHT@KIND:NAME, with one of {', '.join(RIGHTS)}"
            problems.append(Problem(f"scopes[{at}]", f"{text[:100]!r} is no scope; {expected}"))
            continue
        given.append(({found["right"]} | _implied(found["right"]), place(found["on"]) if found["on"] else Place()))
    if problems:
        raise Invalid(problems)
    return Reach(given)


def _implied(right: str) -> frozenset[str]:
    """Whoever changes a thing may see it; ``admin`` is everything."""
    if right == "admin":
        return frozenset(RIGHTS)
    return frozenset({"read"}) if right != "predict" else frozenset()


class Principal:
    """Who asks, and what they may: a user, or a user by way of a token.

    Attributes:
        name: For the history: ``anna``, or ``anna/ci`` for her token ``ci``.
        user: The user.
        token: The public half of the token or session; empty for a password.
        session: Whether a browser's cookie said so.
        until: When it ends, seconds since 1970.
        rate: Requests a second it may make; 0 for no limit of its own.
    """

    __slots__ = ("_roles", "_scopes", "name", "rate", "session", "token", "until", "user")

    def __init__(
        self,
        name: str,
        roles: Reach,
        scopes: Reach | None = None,
        *,
        user: str = "",
        token: str = "",
        session: bool = False,
        until: float = float("inf"),
        rate: float = 0.0,
    ) -> None:
        self.name = name
        self.user = user or name
        self.token = token
        self.session = session
        self.until = until
        self.rate = rate
        self._roles = roles
        self._scopes = scopes

    def may(self, right: str, kind: str = EVERYTHING, name: str = ALL) -> bool:
        """Whether the right holds for a thing, for all of its kind, or for everything."""
        return self._roles.allows(right, kind, name) and (
            self._scopes is None or self._scopes.allows(right, kind, name)
        )

    def names(self, right: str, kind: str) -> frozenset[str] | None:
        """The things of a kind for which the right holds; None for all: what searches may show."""
        mine = self._roles.names(right, kind)
        if self._scopes is None:
            return mine
        within = self._scopes.names(right, kind)
        if mine is None or within is None:
            return within if mine is None else mine
        return mine & within
