"""What each page shows, gathered from the registry inside one read transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from modelkeep.core import digests
from modelkeep.core.errors import ModelkeepError, NotFound
from modelkeep.registry import endpoints, events, findings, models, snapshots
from modelkeep.registry.endpoints import Route, Wanted
from modelkeep.registry.events import Event
from modelkeep.registry.findings import Finding, Window
from modelkeep.registry.models import Version
from modelkeep.registry.snapshots import Record
from modelkeep.spec import loading
from modelkeep.spec.declaration import Declaration
from modelkeep.stats.metrics import METRICS
from modelkeep.web.evidence import Measured, against_champion, gates, measured, of_version
from modelkeep.web.figures import Point
from modelkeep.web.present import spark as line

WINDOWS = 400
FINDINGS = 200
PAGE = 50
_CROWNED = ("version.promoted", "version.rolled_back")


@dataclass(frozen=True, slots=True)
class Served:
    """One endpoint as it stands.

    Attributes:
        champion: The version that answers; None when nothing is served.
        since: When it became so, seconds since 1970; None when the history does not say.
        step: The rollout's step as declared, such as ``canary 10% 1d``; empty outside a rollout.
        metric: Name of the live metric; empty before labels arrived.
        live: The live metric of the champions from labels, oldest first.
        estimated: The same metric expected from the stated probabilities, for windows without labels yet.
        reference: The champion's value of that metric when it was evaluated.
        rows: Predictions in the newest window.
    """

    wanted: Wanted
    champion: int | None
    since: float | None
    step: str = ""
    metric: str = ""
    live: tuple[Point, ...] = ()
    estimated: tuple[Point, ...] = ()
    reference: float | None = None
    rows: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def answering(self) -> list[Route]:
        """The routes that answer requests: all but shadows."""
        return [route for route in self.wanted.routes if route.mode != "shadow"]

    @property
    def spark(self) -> dict[str, Any] | None:
        """The last sixty values of the live metric as a small line."""
        return line([point.value for point in self.live[-60:]], self.reference)


@dataclass(frozen=True, slots=True)
class Row:
    """One version in a table."""

    version: Version
    metric: Measured | None
    gates: tuple[dict[str, Any], ...] = field(default=())


def overview(conn: Connection) -> dict[str, Any]:
    """Every endpoint, the models without one, and the newest events."""
    served = [_served(conn, wanted) for wanted in endpoints.wanted(conn)]
    deployed = {item.wanted.model for item in served}
    others = [(name, models.versions(conn, name)) for name in models.models(conn) if name not in deployed]
    return {
        "served": served,
        "others": others,
        "events": _told(events.history(conn, limit=200, newest_first=True)),
    }


def model(conn: Connection, name: str) -> dict[str, Any]:
    """One model: its endpoints, versions, live metrics, findings and history. Raises ``NotFound``."""
    versions = models.versions(conn, name)
    served = [_served(conn, item) for item in endpoints.wanted(conn) if item.model == name]
    declaration = _declaration(versions)
    kept = {item.version: models.evaluation(conn, name, item.version) for item in versions}
    metric = main_metric(declaration, map(of_version, kept.values()))
    rows = [
        Row(item, measured(of_version(kept[item.version])).get(metric), tuple(gates(kept[item.version])))
        for item in reversed(versions)
    ]
    champion = next((item for item in versions if "champion" in item.aliases), None)
    return {
        "name": name,
        "description": declaration.description if declaration else "",
        "served": served,
        "rows": rows,
        "metric": metric,
        "champion": champion,
        "champion_gates": gates(kept[champion.version]) if champion else [],
        "findings": findings.findings(conn, name, limit=FINDINGS),
        "events": _told(events.history(conn, name, limit=200, newest_first=True)),
    }


def version(conn: Connection, name: str, ref: str) -> dict[str, Any]:
    """One version with its evaluation and lineage; ``ref`` is a number or an alias. Raises ``NotFound``."""
    found = models.version(conn, name, ref)
    kept = models.evaluation(conn, name, found.version)
    said = of_version(kept)
    snapshot = None
    if found.lineage is not None:
        try:
            snapshot = snapshots.get(conn, found.lineage.snapshot)
        except NotFound:
            pass  # taken elsewhere, or forgotten since: its digest is still shown
    return {
        "version": found,
        "metrics": measured(said),
        "main": main_metric(_declaration([found]), [said]),
        "difference": against_champion(kept),
        "gates": gates(kept),
        "evaluation": said,
        "lineage": found.lineage,
        "snapshot": snapshot,
        "events": events.history(conn, found.name, limit=20, newest_first=True),
    }


def data(conn: Connection) -> dict[str, Any]:
    """Every snapshot by name, newest first, with the rows it added."""
    tables: list[tuple[str, list[tuple[Record, int | None]]]] = []
    for name in snapshots.names(conn):
        taken = snapshots.named(conn, name)
        before = [None, *(record.rows for record in taken[:-1])]
        added = [None if old is None else record.rows - old for record, old in zip(taken, before, strict=True)]
        tables.append((name, list(zip(taken, added, strict=True))[::-1]))
    return {"tables": tables}


def history(conn: Connection, *, subject: str, kind: str, page: int) -> dict[str, Any]:
    """A page of events, newest first, and whether the whole chain is intact."""
    found = events.history(conn, subject or None, kind=kind or None, limit=PAGE * page + 1, newest_first=True)
    total, _ = events.head(conn)
    return {
        "events": found[PAGE * (page - 1) : PAGE * page],
        "subject": subject,
        "kind": kind,
        "page": page,
        "more": len(found) > PAGE * page,
        "total": total,
        "faults": events.verify(conn),
    }


def stamp(conn: Connection) -> str:
    """A short text that changes whenever a page may look different: cheap to ask again and again."""
    seq, _ = events.head(conn)
    newest = [item.id for item in findings.findings(conn, limit=1)]
    ends = []
    for wanted in endpoints.wanted(conn):
        last = findings.windows(conn, wanted.endpoint, limit=1)
        ends.append([(window.id, window.rows, window.labels) for window in last])
    return digests.of_value([seq, endpoints.generation(conn), newest, ends])[-16:]


def main_metric(declaration: Declaration | None, evaluations: Iterable[Mapping[str, Any]]) -> str:
    """The metric people look at first: as declared, else the first that was evaluated."""
    if declaration is not None and declaration.train.metric:
        return declaration.train.metric
    for said in evaluations:
        if said.get("metric") in measured(said):
            return str(said["metric"])
    return next((name for said in evaluations for name in measured(said)), "")


def _served(conn: Connection, wanted: Wanted) -> Served:
    champion = next((route.version for route in wanted.routes if route.mode == "stable"), None)
    windows = findings.windows(conn, wanted.endpoint, limit=WINDOWS)
    answered = [window for window in windows if window.mode == "stable"]  # a canary's few rows would only be noise
    versions = models.versions(conn, wanted.model)
    declaration = _declaration(versions)
    asked = declaration.monitor.metric if declaration else ""
    metric = _live_metric(answered, asked or main_metric(declaration, ()))
    past = events.history(conn, wanted.model, newest_first=True, limit=200)
    kept = models.evaluation(conn, wanted.model, champion) if champion else {}
    evaluated = measured(of_version(kept)).get(metric)
    return Served(
        wanted=wanted,
        champion=champion,
        since=_since(past, f"{wanted.model}@{champion}"),
        step=_step(past) if wanted.rollout else "",
        metric=metric,
        live=tuple(_points(answered, metric)),
        estimated=tuple(_estimates(answered, metric)),
        reference=evaluated.value if evaluated else None,
        rows=answered[-1].rows if answered else 0,
        findings=tuple(findings.findings(conn, wanted.model, limit=3)),
    )


def _told(past: Iterable[Event]) -> list[Event]:
    """The newest changes. Findings have a place of their own, and may come with every window."""
    return [event for event in past if not event.kind.startswith("finding.")][:15]


def _live_metric(windows: Sequence[Window], wanted: str) -> str:
    names = [name for window in windows for name in measured({"metrics": window.metrics}) if name in METRICS]
    return wanted if wanted in names or not names else names[0]


def _points(windows: Sequence[Window], metric: str) -> Iterable[Point]:
    for window in windows:
        found = measured({"metrics": window.metrics}).get(metric)
        if found is not None:
            yield Point(
                at=window.end, value=found.value, low=found.low, high=found.high, group=f"v{window.version}"
            )


def _estimates(windows: Sequence[Window], metric: str) -> Iterable[Point]:
    for window in windows:
        found = measured({"metrics": window.metrics})
        expected = found.get(f"{metric}_estimated")
        if expected is not None and metric not in found:
            point = Point(at=window.end, value=expected.value, low=expected.low, high=expected.high)
            yield replace(point, group="estimated, no labels yet")


def _since(past: Sequence[Event], name: str) -> float | None:
    return next((event.at for event in past if event.kind in _CROWNED and event.subject == name), None)


def _step(past: Sequence[Event]) -> str:
    return next((str(event.data.get("step", "")) for event in past if event.kind.startswith("rollout.")), "")


def _declaration(versions: Sequence[Version]) -> Declaration | None:
    """What the newest version was declared as; None when it came from outside."""
    for found in reversed(versions):
        if found.lineage is not None and found.lineage.declaration_text:
            try:
                return loading.load_text(found.lineage.declaration_text)
            except ModelkeepError:
                return None  # written by a release with other fields; the page shows what it can
    return None
