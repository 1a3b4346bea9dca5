"""Which version answers a request: by weight, sticky by key, monotone as a canary grows.

A key's position in [0, 1) is a hash of endpoint and key, the same in every process. Canaries occupy the interval
from 0 upward, so a key that a canary of 5 % answers is still answered by it at 50 %.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Generic, Protocol, TypeVar


class Weighted(Protocol):
    """What routing needs to know of a route."""

    @property
    def mode(self) -> str: ...

    @property
    def weight(self) -> float: ...


R = TypeVar("R", bound=Weighted)


def position(endpoint: str, key: str) -> float:
    """Where ``key`` lies in [0, 1) for this endpoint: uniform, and independent between endpoints."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, person=_person(endpoint)).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _person(endpoint: str) -> bytes:
    return blake2b(endpoint.encode(), digest_size=16).digest()


class Table(Generic[R]):
    """An endpoint's routes, ready to choose from.

    Canaries get their own weights (together at most 1); the stable routes share what is left in proportion to
    theirs. Without a stable route the canaries share everything. Shadows answer nothing.

    Attributes:
        routes: Those that answer, in the order of their intervals.
        shadows: Those that only watch.
        only: The one route that answers everything, or None when there are several.
    """

    __slots__ = ("_ends", "endpoint", "only", "routes", "shadows")

    def __init__(self, endpoint: str, routes: Sequence[R]) -> None:
        self.endpoint = endpoint
        self.shadows: tuple[R, ...] = tuple(route for route in routes if route.mode == "shadow")
        answering = [route for route in routes if route.mode != "shadow"]
        canaries = [route for route in answering if route.mode == "canary" and route.weight > 0]
        stable = [route for route in answering if route.mode != "canary" and route.weight > 0]
        if not canaries and not stable:
            stable = [route for route in answering if route.mode != "canary"][:1] or answering[:1]
        weights = _shares([route.weight for route in canaries], [route.weight for route in stable])
        kept = [(route, w) for route, w in zip([*canaries, *stable], weights, strict=True) if w > 0]
        self.routes: tuple[R, ...] = tuple(route for route, _ in kept)
        self._ends = list(accumulate(weight for _, weight in kept))[:-1]
        self.only: R | None = self.routes[0] if len(self.routes) == 1 else None

    def pick(self, key: str) -> R:
        """The route that answers ``key``. The table must not be empty."""
        if self.only is not None:
            return self.only
        return self.routes[bisect_right(self._ends, position(self.endpoint, key))]


def _shares(canaries: list[float], stable: list[float]) -> list[float]:
    """Each route's share of traffic; they sum to 1."""
    wanted = sum(canaries)
    if not stable or wanted > 1:
        canaries = [weight / wanted for weight in canaries]
    rest = max(0.0, 1.0 - sum(canaries)) if stable else 0.0
    total = sum(stable)
    return canaries + [rest * weight / total if total else rest / len(stable) for weight in stable]
