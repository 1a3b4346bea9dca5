"""Asking: what is live, what was live then, where a version came from, what changed between two."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid, NotFound
from modelkeep.lifecycle import stages
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import endpoints, events, findings, models, runs, snapshots
from modelkeep.registry.endpoints import Wanted
from modelkeep.registry.events import Event
from modelkeep.registry.findings import Finding
from modelkeep.registry.lineage import Lineage
from modelkeep.registry.models import Version
from modelkeep.registry.snapshots import Record
from modelkeep.spec import loading


class Shown(Struct, frozen=True, kw_only=True):
    """A model as it stands.

    Attributes:
        versions: Oldest first.
        endpoints: Where it is served.
        findings: The newest few.
        events: The newest few.
    """

    model: str
    versions: list[Version]
    endpoints: list[Wanted]
    findings: list[Finding]
    events: list[Event]


class Traced(Struct, frozen=True, kw_only=True):
    """Where a version came from.

    Attributes:
        version: The version.
        evaluation: How it was judged: metrics with intervals, comparison, gates.
        snapshot: The rows, part by part with the files they came from.
        run: Parameters and metrics of its training.
        events: Everything that happened to it.
    """

    version: Version
    evaluation: dict[str, Any]
    snapshot: Record | None
    run: runs.Run | None
    events: list[Event]


class Difference(Struct, frozen=True, kw_only=True):
    """What changed from one version to another, each as (before, after).

    Attributes:
        declaration: Fields of the declaration by path.
        params: Parameters as fitted.
        metrics: Evaluation metrics. Each version's were taken on its own frozen rows.
        data: Names of partitions that were added, removed or changed.
        rows: Rows of the snapshots.
        code: Commits.
        environment: Whether the environments differ.
    """

    before: str
    after: str
    declaration: dict[str, tuple[Any, Any]]
    params: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[float | None, float | None]]
    data: dict[str, list[str]]
    rows: tuple[int, int]
    code: tuple[str, str]
    environment: bool


def split_ref(text: str) -> tuple[str, str]:
    """``flights@7`` as (``flights``, ``7``); without ``@`` the champion is meant."""
    model, _, ref = text.partition("@")
    if not model:
        raise Invalid(f"{text!r} names no model; expected MODEL or MODEL@VERSION or MODEL@ALIAS")
    return model, ref or "champion"


def show(keep: Keep, model: str) -> Shown:
    """A model as it stands.

    Raises:
        NotFound: There is no such model.
    """
    with keep.db.read() as conn:
        known = models.versions(conn, model)
        return Shown(
            model=model,
            versions=known,
            endpoints=[wanted for wanted in endpoints.wanted(conn) if wanted.model == model],
            findings=findings.findings(conn, model, limit=10),
            events=events.history(conn, model, newest_first=True, limit=20),
        )


def live_at(keep: Keep, model: str, at: float) -> Version:
    """The version that was champion at a time.

    Raises:
        NotFound: None was.
    """
    with keep.db.read() as conn:
        crowned = [
            event
            for event in events.history(conn, model)
            if event.kind in ("version.promoted", "version.rolled_back") and event.at <= at
        ]
        if not crowned:
            raise NotFound(f"model {model!r} had no champion then")
        return models.version(conn, model, crowned[-1].subject.rpartition("@")[2])


def trace(keep: Keep, ref: str) -> Traced:
    """Where a version came from, down to the files and the commit.

    Raises:
        NotFound: There is no such version.
    """
    model, name = split_ref(ref)
    with keep.db.read() as conn:
        version = models.version(conn, model, name)
        return Traced(
            version=version,
            evaluation=models.evaluation(conn, model, version.version),
            snapshot=_snapshot(conn, version.lineage),
            run=runs.get(conn, version.run_id) if version.run_id else None,
            events=events.history(conn, version.name),
        )


def diff(keep: Keep, before: str, after: str) -> Difference:
    """What changed from one version to another.

    Raises:
        NotFound: One of them is not there.
    """
    with keep.db.read() as conn:
        one, two = (models.version(conn, *split_ref(ref)) for ref in (before, after))
        old, new = one.lineage or _UNKNOWN, two.lineage or _UNKNOWN
        data, rows = _data(_snapshot(conn, old), _snapshot(conn, new))
    said = [
        loading.to_builtins(loading.load_text(item.declaration_text))
        for item in (old, new)
        if item.declaration_text
    ]
    names = sorted(one.metrics.keys() | two.metrics.keys())
    return Difference(
        before=one.name,
        after=two.name,
        declaration=stages.differences(*said) if len(said) == 2 else {},
        params=stages.differences(old.params, new.params),
        metrics={name: (one.metrics.get(name), two.metrics.get(name)) for name in names},
        data=data,
        rows=rows,
        code=(old.code.commit, new.code.commit),
        environment=old.environment != new.environment,
    )


_UNKNOWN = Lineage(snapshot="", declaration="")


def _snapshot(conn: Connection, lineage: Lineage | None) -> Record | None:
    if lineage is None or not lineage.snapshot:
        return None
    try:
        return snapshots.get(conn, lineage.snapshot)
    except NotFound:
        return None


def _data(before: Record | None, after: Record | None) -> tuple[dict[str, list[str]], tuple[int, int]]:
    old = before.fingerprints if before else {}
    new = after.fingerprints if after else {}
    return {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if old[name].digest != new[name].digest),
    }, (before.rows if before else 0, after.rows if after else 0)
