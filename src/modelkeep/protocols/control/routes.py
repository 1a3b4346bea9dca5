"""What the control server offers under ``/api/modelkeep/``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from modelkeep.core.errors import NotFound
from modelkeep.lifecycle import renewals, rollout
from modelkeep.lifecycle.keep import Keep
from modelkeep.protocols import openapi
from modelkeep.protocols.access.asgi import named
from modelkeep.protocols.control.http import Call, Operation, as_json
from modelkeep.protocols.control.labels import PARQUET, Posted, Taken, rows
from modelkeep.protocols.openapi import Described
from modelkeep.registry import captures, endpoints, events, findings, models, snapshots
from modelkeep.registry.endpoints import Wanted
from modelkeep.registry.events import Event
from modelkeep.registry.findings import Finding, Window
from modelkeep.registry.models import Version
from modelkeep.store import jobs
from modelkeep.store.jobs import Job

BASE = "/api/modelkeep"
MLFLOW = "3.17.0"
"""The release of MLflow whose API is spoken: clients ask for it before they send spans."""


Number = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""A version, a limit: what a database's smallest whole number holds."""


class EventQuery(Struct, frozen=True):
    """Which events: after a sequence number, of a subject, of a kind; at most ``limit``."""

    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    subject: str | None = None
    kind: str | None = None
    limit: Number = 1000


class WatchQuery(Struct, frozen=True):
    """Which windows or findings: of a version, at most ``limit``."""

    version: Number | None = None
    limit: Number = 1000


class Rollback(Struct, frozen=True, forbid_unknown_fields=True):
    """Where to go back to: a version, or the champion before this one."""

    to: Number | None = None
    because: str = "asked for"


class Events(Struct, frozen=True):
    """A stretch of the history."""

    events: list[Event]


class Chain(Struct, frozen=True):
    """Whether the history is whole; each fault as a sentence."""

    whole: bool
    faults: list[str]


def routes(
    keep: Keep,
    loop_status: Callable[[], dict[str, Any]],
    serving: Callable[[], str] = str,
    beside: Iterable[Described] = (),
) -> list[Route]:
    """The routes of the control server's own API.

    Args:
        keep: The home they speak for.
        loop_status: What the loop says of itself.
        serving: Says where serving processes answer; empty without any.
        beside: What else the control server offers, for the OpenAPI document.
    """
    operations = [*_looking(keep, loop_status, serving), *_acting(keep)]
    document = openapi.document([*(operation.described for operation in operations), *beside])

    async def describe(_: Request) -> Response:
        return as_json(document)

    async def health(_: Request) -> Response:
        return PlainTextResponse("OK")

    async def version(_: Request) -> Response:
        return PlainTextResponse(MLFLOW)

    fixed = [Route("/health", health), Route("/version", version), Route(f"{BASE}/openapi.json", describe)]
    return [*fixed, *(operation.route() for operation in operations)]


class _Looking:
    """What is asked of the registry. Each method is one read."""

    def __init__(self, keep: Keep, loop_status: Callable[[], dict[str, Any]], serving: Callable[[], str]) -> None:
        self.keep = keep
        self.loop_status = loop_status
        self.serving = serving

    def status(self, _: Call) -> dict[str, Any]:
        with self.keep.db.read() as conn:
            served = endpoints.wanted(conn)
            taken = sum(captures.total_rows(conn, wanted.endpoint) for wanted in served)
            busy = [job for job in jobs.listing(conn) if job.state in ("queued", "running")]
        return {
            "now": self.keep.clock.now(),
            "captured_rows": taken,
            "jobs": len(busy),
            "loop": self.loop_status(),
            "serving": self.serving(),
        }

    def all_models(self, _: Call) -> dict[str, list[Version]]:
        with self.keep.db.read() as conn:
            return {name: models.versions(conn, name) for name in models.models(conn)}

    def one_version(self, call: Call) -> Version:
        with self.keep.db.read() as conn:
            return models.version(conn, call.path["model"], call.path["version"])

    def evaluation(self, call: Call) -> dict[str, Any]:
        with self.keep.db.read() as conn:
            found = models.version(conn, call.path["model"], call.path["version"])
            return models.evaluation(conn, found.model, found.version)

    def all_endpoints(self, _: Call) -> list[Wanted]:
        with self.keep.db.read() as conn:
            return endpoints.wanted(conn)

    def watched(self, call: Call) -> list[Window]:
        with self.keep.db.read() as conn:
            name = _endpoint(conn, call.path["endpoint"]).endpoint
            return findings.windows(conn, name, version=call.query.version, limit=call.query.limit)

    def found(self, call: Call) -> list[Finding]:
        with self.keep.db.read() as conn:
            model = _endpoint(conn, call.path["endpoint"]).model
            return findings.findings(conn, model, version=call.query.version, limit=call.query.limit)

    def history(self, call: Call) -> Events:
        asked = call.query
        with self.keep.db.read() as conn:
            return Events(
                events.history(conn, asked.subject, kind=asked.kind, after=asked.after, limit=asked.limit)
            )

    def chain(self, _: Call) -> Chain:
        with self.keep.db.read() as conn:
            faults = events.verify(conn)
        return Chain(not faults, faults)

    def all_jobs(self, _: Call) -> list[Job]:
        with self.keep.db.read() as conn:
            return renewals.waiting(conn, jobs.listing(conn), renewals.room())

    def data(self, _: Call) -> dict[str, list[snapshots.Record]]:
        with self.keep.db.read() as conn:
            return {name: snapshots.named(conn, name) for name in snapshots.names(conn)}


def _looking(keep: Keep, loop_status: Callable[[], dict[str, Any]], serving: Callable[[], str]) -> list[Operation]:
    look = _Looking(keep, loop_status, serving)
    return [
        Operation("GET", f"{BASE}/status", "What the control server knows of itself", look.status),
        Operation(
            "GET",
            f"{BASE}/models",
            "Every model and its versions",
            look.all_models,
            gives=dict[str, list[Version]],
        ),
        Operation(
            "GET", f"{BASE}/models/{{model}}/versions/{{version}}", "One version", look.one_version, gives=Version
        ),
        Operation(
            "GET", f"{BASE}/models/{{model}}/versions/{{version}}/evaluation", "Its evaluation", look.evaluation
        ),
        Operation("GET", f"{BASE}/endpoints", "What each endpoint serves", look.all_endpoints, gives=list[Wanted]),
        Operation(
            "GET",
            f"{BASE}/endpoints/{{endpoint}}/windows",
            "Windows of its traffic",
            look.watched,
            query=WatchQuery,
            gives=list[Window],
        ),
        Operation(
            "GET",
            f"{BASE}/endpoints/{{endpoint}}/findings",
            "What was found about it",
            look.found,
            query=WatchQuery,
            gives=list[Finding],
        ),
        Operation("GET", f"{BASE}/events", "The history", look.history, query=EventQuery, gives=Events),
        Operation("GET", f"{BASE}/events/verify", "Whether the history is whole", look.chain, gives=Chain),
        Operation("GET", f"{BASE}/jobs", "Recent jobs", look.all_jobs, gives=list[Job]),
        Operation(
            "GET", f"{BASE}/snapshots", "Every snapshot", look.data, gives=dict[str, list[snapshots.Record]]
        ),
    ]


def _acting(keep: Keep) -> list[Operation]:
    def label(call: Call) -> Taken:
        given = rows(call.body, keep.clock.now())
        return Taken(keep.db.write(lambda conn: captures.put_labels(conn, given)))

    def roll_back(call: Call) -> Version:
        body: Rollback = call.body
        now = keep.clock.now()
        model = call.path["model"]
        return keep.db.write(
            named(lambda conn: rollout.roll_back(conn, model, to=body.to, now=now, because=body.because))
        )

    return [
        Operation(
            "POST",
            f"{BASE}/labels",
            "Post labels: one, many under 'labels', or a Parquet file",
            label,
            body=Posted,
            also=(PARQUET,),
            gives=Taken,
        ),
        Operation(
            "POST",
            f"{BASE}/models/{{model}}/rollback",
            "Give all traffic back to an earlier champion",
            roll_back,
            body=Rollback,
            gives=Version,
        ),
    ]


def _endpoint(conn: Any, name: str) -> Wanted:
    found = endpoints.get(conn, name)
    if found is None:
        known = ", ".join(wanted.endpoint for wanted in endpoints.wanted(conn)) or "none"
        raise NotFound(f"there is no endpoint {name!r}; there are: {known}")
    return found
