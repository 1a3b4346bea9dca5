"""The data plane: endpoints by name, and how what they serve changes while they serve it.

Every door calls this and nothing else. Changes follow load -> verify -> warm -> swap -> drain: ``apply`` runs
outside the event loop until everything wanted is ready, then replaces the tables in one step on the loop. A
request belongs to the lane it was queued in, and a lane lives until its last batch has ended; so no request ever
meets a change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol
from weakref import WeakSet

from modelkeep.core.clock import Clock
from modelkeep.core.errors import ModelkeepError, NotFound, Unavailable
from modelkeep.registry import unloading
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.serve import ids
from modelkeep.serve.addressable import offered
from modelkeep.serve.batching import Lane
from modelkeep.serve.calls import Batch, Call
from modelkeep.serve.capture import Channel
from modelkeep.serve.columns import Loaded
from modelkeep.serve.endpoint import Endpoint, Way, channels, same
from modelkeep.serve.isolated import DEFAULT, Terms, terms_of, trusted_by
from modelkeep.serve.limits import limits, redacted
from modelkeep.serve.metrics import Counters, Series, Totals, together
from modelkeep.serve.seen import Allowed, seen
from modelkeep.serve.shadow import Shadow
from modelkeep.serve.spool import Spool
from modelkeep.serve.turns import Turns

__all__ = ["Answer", "DataPlane", "Endpoint", "Packages"]

log = logging.getLogger(__name__)

SLOW_BATCHES = 64


class Packages(Protocol):
    """Where versions come from."""

    def load(self, digest: str, *, trusted: Sequence[str] = (), terms: Terms = DEFAULT) -> Loaded:
        """The version, its bytes verified, warm. Raises ``Damaged``, ``NotFound``, ``Unavailable``."""
        ...

    def on_request(self, digest: str, *, trusted: Sequence[str] = (), terms: Terms = DEFAULT) -> Loaded:
        """The version, loaded when it is first asked. Raises as ``load``."""
        ...

    def keep(self, digests: Iterable[str]) -> None:
        """Only these are wanted now; the others may be forgotten."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What ``infer`` gives.

    Attributes:
        id: The request's id; prediction ids follow from it (``modelkeep.serve.ids``).
        columns: Output arrays by name, first axis rows.
    """

    id: str
    endpoint: str
    model: str
    version: int
    columns: Mapping[str, Any]


class DataPlane:
    """All endpoints of one serving process.

    Args:
        loop: Where requests live.
        clock: For the time of captured predictions.
        spool: Writes captured predictions; None captures nothing.

    Attributes:
        allowed: Told which endpoint is asked for, and by what name; raises when they may not; None allows all.
        turns: Of the loop.
        unloaded: Endpoints that are to be out of memory for a while.
        unload: Has an endpoint unloaded, or with False loaded again, in every process, in somebody's name. May
            raise ``Unavailable``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, spool: Spool | None = None) -> None:
        self.new_id = ids.generator()
        self.turns = Turns()
        self.endpoints: dict[str, Endpoint] = {}
        self.generation = -1
        self.faults: dict[str, str] = {}
        self.swapped: list[Callable[[], None]] = []
        self.elsewhere: Callable[[], list[Totals]] = list
        self.allowed: Allowed | None = None
        self.unloaded: frozenset[str] = frozenset()
        self.unload: Callable[[str, bool, str], None] | None = None
        self._names: dict[str, Endpoint] = {}
        self._loop = loop
        self._clock = clock
        self._spool = spool
        self._counters: dict[tuple[Any, ...], Counters] = {}
        self._lanes: WeakSet[Lane] = WeakSet()  # also those that a swap left to end
        self._slow = ThreadPoolExecutor(SLOW_BATCHES, thread_name_prefix="slow-model")
        self._shadowing = ThreadPoolExecutor(1, thread_name_prefix="shadow")

    # what doors ask

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint of this name, or the first one that serves the model of this name.

        Raises:
            NotFound: There is none.
            Unavailable: Nothing is loaded at all yet.
        """
        found = self._names.get(name)
        if self.allowed is not None:  # before anything is said: what is not there is refused like what is
            self.allowed(name if found is None else found.name, name)
        if found is None:
            if self.generation < 0:
                raise Unavailable("no model is loaded yet", hint="try again in a moment")
            if name in self.unloaded:
                raise NotFound(f"{name!r} was unloaded", hint="POST /v2/repository/models/NAME/load loads it")
            known = ", ".join(seen(self.endpoints, self.allowed)) or "none"
            raise NotFound(f"there is no endpoint or model {name[:60]!r} here; there are: {known}")
        return found

    def default(self) -> Endpoint:
        """The endpoint meant when none is named: the only one.

        Raises:
            NotFound: There are several, or none.
            Unavailable: Nothing is loaded at all yet.
        """
        if len(self.endpoints) == 1:
            (only,) = self.endpoints
            if self.allowed is not None:
                self.allowed(only, "*")
            return self.endpoint(only)
        if not self.endpoints:
            raise Unavailable("no model is loaded yet", hint="apply a declaration first")
        raise NotFound(
            f"several endpoints are served: {', '.join(seen(self.endpoints, self.allowed))}",
            hint="POST to /endpoints/<name>/invocations",
        )

    def shown(self, name: str, error: ModelkeepError) -> ModelkeepError:
        """The error as requests for ``name`` may see it: ``deploy.errors`` decides."""
        found = self._names.get(name)
        if found is None or not any(way.lane.limits.redact for way in found.ways):
            return error
        return redacted(error)

    async def infer(
        self,
        endpoint: str,
        columns: Mapping[str, Sequence[Any]],
        id: str = "",
        key: str | None = None,
        version: str = "",
    ) -> Answer:
        """Predict rows given as lists of JSON values by column; for callers on the loop that are not doors.

        Raises:
            Invalid, NotFound, Unavailable: As the request deserves.
        """
        id = id or self.new_id()
        lane = self.endpoint(endpoint).lane(key or id, version)
        rows = lane.inputs.named(columns, ignore_unknown=lane.ignore_unknown)
        waiting: asyncio.Future[Answer] = self._loop.create_future()
        lane.submit(Call(rows, id, _FUTURES, waiting, key))
        return await waiting

    def counted(self) -> list[Totals]:
        """What this process counted."""
        return [series.totals() for series in self.series()]

    def totals(self) -> list[Totals]:
        """What was counted of the series here, in all processes that count together."""
        mine = self.counted()
        known = {(line.endpoint, line.model, line.version, line.mode) for line in mine}
        others = (
            line for line in self.elsewhere() if (line.endpoint, line.model, line.version, line.mode) in known
        )
        return together([*mine, *others])

    def series(self) -> list[Series]:
        """What Prometheus may see, one per endpoint, version and mode."""
        return [
            Series(way.shadow.channel if way.shadow else way.lane.channel, way.lane.counters)
            for endpoint in self.endpoints.values()
            for way in endpoint.ways
        ]

    def pressure(self) -> float:
        """The longest expected wait of any lane as a share of its budget."""
        ways = [way for endpoint in self.endpoints.values() for way in endpoint.ways]
        return max((way.lane.pressure for way in ways), default=0.0)

    def apart(self) -> list[tuple[dict[str, str], dict[str, Any]]]:
        """How the processes stand that versions of this process run in, each with the labels of its metrics."""
        return [
            (
                {
                    "endpoint": endpoint.name,
                    "model": endpoint.wanted.model,
                    "version": str(way.version),
                    "mode": way.mode,
                },
                way.lane.loaded.apart.status(),
            )
            for endpoint in self.endpoints.values()
            for way in endpoint.ways
            if way.lane.loaded.apart is not None
        ]

    # what the worker asks

    def apply(
        self,
        wanted: Sequence[Wanted],
        packages: Packages,
        generation: int = 0,
        *,
        loaded: Callable[[Sequence[Wanted]], None] | None = None,
    ) -> None:
        """Serve what is wanted. Call from any thread but the loop's; returns once the swap is done.

        An endpoint whose answering versions cannot all be loaded goes on as it was, with the reason in ``faults``;
        a shadow that cannot be loaded is left out.

        Args:
            wanted: Every endpoint; those not named end.
            packages: Where versions come from.
            generation: Of the wanted state.
            loaded: Told what is about to be served, before the first request can be answered by it.
        """
        made: dict[str, Endpoint] = {}
        faults: dict[str, str] = {}
        away = [one for one in wanted if unloading.is_unloaded(one)]
        for one in wanted:
            if one in away:
                continue
            before = self.endpoints.get(one.endpoint)
            try:
                made[one.endpoint] = Endpoint(one, self._ways(one, before, packages, faults))
            except ModelkeepError as error:
                faults[one.endpoint] = str(error)
                log.error("endpoint %s stays as it was: %s", one.endpoint, error)
                if before is not None:
                    made[one.endpoint] = before
        kept = [*(endpoint.wanted for endpoint in made.values()), *away]
        if loaded is not None:
            loaded(kept)
        done: Future[None] = Future()
        unloaded = frozenset(one.endpoint for one in away)
        self._loop.call_soon_threadsafe(self._swap, made, unloaded, faults, generation, done)
        done.result()
        packages.keep({route.package for one in kept for route in (*one.routes, *offered(one))})

    def _ways(
        self, wanted: Wanted, before: Endpoint | None, packages: Packages, faults: dict[str, str]
    ) -> list[Way]:
        ways = []
        trusted, terms = trusted_by(wanted.settings), terms_of(wanted.settings)
        for route in wanted.routes:
            old = same(before, wanted, route)
            if old is not None:
                ways.append(replace(old, weight=route.weight))
                continue
            try:
                if route.mode == "shadow":
                    loaded = packages.on_request(route.package, trusted=trusted, terms=terms)
                    loaded.bring(shadow=True)
                else:
                    loaded = packages.load(route.package, trusted=trusted, terms=terms)
                ways.append(self._way(wanted, route, loaded))
            except ModelkeepError as error:
                if route.mode != "shadow":
                    raise
                faults[f"{wanted.endpoint} shadow {route.version}"] = str(error)
                log.error("shadow %s of %s is left out: %s", route.version, wanted.endpoint, error)
        for route in offered(wanted):
            try:
                loaded = packages.on_request(route.package, trusted=trusted, terms=terms)
                ways.append(self._way(wanted, route, loaded))
            except ModelkeepError as error:
                log.warning("version %s of %s cannot be offered: %s", route.version, wanted.endpoint, error)
        return ways

    def _way(self, wanted: Wanted, route: Route, loaded: Loaded) -> Way:
        labels = (wanted.endpoint, wanted.model, route.version, route.mode)
        bounds = limits(wanted.settings)
        counters = self._counters.setdefault(labels, Counters())

        def channel() -> Channel:
            return Channel(
                *labels,
                loaded.signature,
                sample=float(wanted.settings.get("sample", 1.0 if self._spool else 0.0)),
                mask=wanted.settings.get("mask", ()),
                full=self._spool.full if self._spool else None,
            )

        lane = Lane(
            loaded,
            channel(),
            counters,
            loop=self._loop,
            clock=self._clock,
            executor=self._slow,
            limits=bounds,
            turns=self.turns,
        )
        self._lanes.add(lane)
        shadow = None
        if route.mode == "shadow":
            shadow = Shadow(
                loaded,
                channel(),
                counters,
                share=route.weight,
                executor=self._shadowing,
                clock=self._clock,
            )
        return Way(route.version, route.mode, route.weight, lane, shadow)

    def _swap(
        self,
        made: dict[str, Endpoint],
        unloaded: frozenset[str],
        faults: dict[str, str],
        generation: int,
        done: Future[None],
    ) -> None:
        """On the loop: between two requests everything changes at once."""
        old, new = channels(self.endpoints.values()), channels(made.values())
        for endpoint in self.endpoints.values():
            for way in endpoint.ways:
                way.lane.shadows = ()  # of a lane that ends here; the others get theirs below
        for endpoint in made.values():
            shadows = tuple(way.shadow for way in endpoint.ways if way.shadow)
            for way in endpoint.ways:
                if way.shadow is None:
                    way.lane.shadows = shadows
                else:
                    way.shadow.share = way.weight
        names: dict[str, Endpoint] = {}
        for endpoint in made.values():
            names.setdefault(endpoint.wanted.model, endpoint)
        names.update(made)
        self.endpoints, self._names, self.faults, self.generation = made, names, faults, generation
        self.unloaded = unloaded
        for listener in self.swapped:
            listener()
        if self._spool:
            for key, channel in new.items():
                if key not in old:
                    self._spool.add(channel)
            for key, channel in old.items():
                if key not in new:
                    self._spool.retire(channel)
        done.set_result(None)

    def end(self) -> None:
        """Refuse whatever is not answered yet: the process is to end. Call on the loop."""
        why = Unavailable("the serving process is ending and did not come to it", hint="try again")
        for lane in tuple(self._lanes):
            lane.end(why)

    def close(self) -> None:
        """Wait for batches in threads; the loop must go on running until this returns."""
        self._slow.shutdown(wait=True)
        self._shadowing.shutdown(wait=True, cancel_futures=True)


class _Futures:
    """The door of ``infer``: answers into an asyncio future."""

    def answer(self, call: Call, batch: Batch) -> None:
        waiting: asyncio.Future[Answer] = call.sink
        if waiting.done():
            return
        rows = slice(call.start, call.start + call.rows.count)
        c = batch.lane.channel
        columns = {name: column[rows] for name, column in batch.outputs.items()}
        waiting.set_result(Answer(call.id, c.endpoint, c.model, c.version, columns))

    def refuse(self, call: Call, error: ModelkeepError) -> None:
        if not call.sink.done():
            call.sink.set_exception(error)


_FUTURES = _Futures()
