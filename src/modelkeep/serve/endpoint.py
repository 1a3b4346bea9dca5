"""A stable address and where it leads now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelkeep.core.errors import NotFound, Unavailable
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.serve.addressable import offers_all
from modelkeep.serve.batching import Lane
from modelkeep.serve.capture import Channel
from modelkeep.serve.routing import Table
from modelkeep.serve.shadow import Shadow

_NEAR = 2048


@dataclass(frozen=True, slots=True)
class Way:
    """A route that is ready: a lane with its weight, or a shadow."""

    version: int
    mode: str
    weight: float
    lane: Lane
    shadow: Shadow | None = None


class Endpoint:
    """A stable address and where it leads now. Belongs to the event loop's thread; replaced whole by a swap."""

    __slots__ = ("_aliases", "_versions", "_ways", "name", "only", "table", "wanted")

    def __init__(self, wanted: Wanted, ways: Sequence[Way]) -> None:
        self.name = wanted.endpoint
        self.wanted = wanted
        self._ways = tuple(ways)
        self.table: Table[Way] = Table(wanted.endpoint, ways)
        self.only: Lane | None = self.table.only.lane if self.table.only else None
        self._versions = {way.version: way.lane for way in reversed(self._ways)}
        aliases: Mapping[str, int] = wanted.settings.get("aliases") or {}
        self._aliases = {name: self._versions[v] for name, v in aliases.items() if v in self._versions}
        stable = [way for way in ways if way.mode == "stable"]
        if stable:
            self._aliases.setdefault("champion", max(stable, key=lambda way: way.weight).lane)
        for way in ways:
            if way.mode != "stable":
                self._aliases.setdefault("challenger", way.lane)

    @property
    def ways(self) -> tuple[Way, ...]:
        return self._ways

    @property
    def versions(self) -> list[int]:
        """Versions that can be addressed here, smallest first."""
        return sorted(self._versions)

    @property
    def lead(self) -> Lane:
        """The lane that stands for the endpoint in metadata."""
        found = self._aliases.get("champion") or self.only
        return found or self.table.routes[0].lane

    def admit(self, body: bytes = b"") -> None:
        """Ask before ``body`` is decoded whether there is room at all, so that a refusal costs next to nothing.

        A body that may name a priority, near its beginning or its end, is let in: whether there is room for it is
        seen when it is decoded.

        Raises:
            Overloaded: Whoever answers has more waiting than it can answer in time.
        """
        if self.only is not None and (full := self.only.full) is not None and not _ranked(body):
            self.only.counters.shed += 1
            raise full

    def lane(self, key: str, ref: str = "") -> Lane:
        """Who answers a request: by weight and key, or the version or alias it names.

        Raises:
            NotFound: There is no such version or alias here.
            Unavailable: Nothing answers here yet.
        """
        if not ref:
            if self.only is not None:
                return self.only
            if not self.table.routes:
                raise Unavailable(f"endpoint {self.name!r} has only shadows", hint="give one route a weight")
            return self.table.pick(key).lane
        number = ref.isascii() and ref.isdigit() and len(ref) < 19
        found = self._versions.get(int(ref)) if number else self._aliases.get(ref)
        if found is None:
            known = ", ".join([*map(str, self.versions), *sorted(self._aliases)])
            hint = (
                "" if offers_all(self.wanted) else "deploy.versions: all lets every version and alias be asked for"
            )
            raise NotFound(f"endpoint {self.name!r} does not serve {ref[:60]!r}; it serves {known}", hint=hint)
        return found


def _ranked(body: bytes) -> bool:
    return b"priority" in body[:_NEAR] or b"priority" in body[-_NEAR:]


def same(before: Endpoint | None, wanted: Wanted, route: Route) -> Way | None:
    """The way that serves this route already, if nothing but its weight changed."""
    if before is None or before.wanted.settings != wanted.settings or before.wanted.model != wanted.model:
        return None
    packages = {(r.version, r.mode): r.package for r in before.wanted.routes}
    if packages.get((route.version, route.mode)) != route.package:
        return None
    for way in before.ways:
        if (way.version, way.mode) == (route.version, route.mode):
            return way
    return None


def channels(endpoints: Iterable[Endpoint]) -> dict[int, Channel]:
    found: dict[int, Channel] = {}
    for endpoint in endpoints:
        for way in endpoint.ways:
            found[id(way.lane.channel)] = way.lane.channel
            if way.shadow:
                found[id(way.shadow.channel)] = way.shadow.channel
    return found
