"""Gathering what a decision depends on. All the reading is here, so that ``decide`` needs none."""

from __future__ import annotations

from sqlalchemy import Connection

from modelkeep.core.errors import NotFound
from modelkeep.lifecycle import renewals
from modelkeep.lifecycle.decide import Evidence, Facts, Underway
from modelkeep.registry import findings, models, snapshots
from modelkeep.registry.endpoints import Wanted
from modelkeep.registry.findings import Finding
from modelkeep.store import jobs


def gather(conn: Connection, wanted: Wanted, *, now: float, rollout: Underway | None) -> Facts:
    """The facts about one endpoint.

    Args:
        rollout: The rollout under way with what its traffic shows, if there is one.
    """
    model = wanted.model
    champion = models.alias(conn, model, "champion")
    attempt = renewals.last_attempt(conn, model)
    since, tried = attempt or (None, "")
    if champion is not None:
        made = models.version(conn, model, champion).created
        since = made if since is None else max(since, made)
    return Facts(
        now=now,
        champion=champion,
        rollout=rollout,
        evidence=() if champion is None else _evidence(conn, model, champion, since or 0.0),
        new_rows=0 if champion is None else unseen_rows(conn, model, champion, tried),
        last_attempt=since,
        renewing=bool(jobs.active(conn, model, renewals.KIND)),
    )


def unseen_rows(conn: Connection, model: str, version: int, tried: str = "") -> int:
    """Rows of the newest snapshot in parts that neither the version's snapshot nor the one tried last has.

    What was tried and refused is not tried again: the same rows would be refused again, and again.

    Args:
        tried: Digest of the snapshot that was newest at the last attempt; empty before the first.
    """
    lineage = models.version(conn, model, version).lineage
    newest = snapshots.latest(conn, model)
    if lineage is None or newest is None or newest.digest in (lineage.snapshot, tried):
        return 0
    known = _parts(conn, lineage.snapshot) | _parts(conn, tried)
    return sum(part.rows for part in newest.fingerprints.values() if part.digest not in known)


def _parts(conn: Connection, snapshot: str) -> set[str]:
    if not snapshot:
        return set()
    try:
        return {part.digest for part in snapshots.get(conn, snapshot).fingerprints.values()}
    except NotFound:  # withdrawn
        return set()


def _evidence(conn: Connection, model: str, version: int, since: float) -> tuple[Evidence, ...]:
    found = findings.findings(conn, model, version=version, since=since)
    return tuple(
        Evidence(kind=finding.kind, at=finding.at, text=said(finding))  # type: ignore[arg-type]
        for finding in found
        if finding.kind in ("drift", "performance_drop") and finding.at > since
    )


def said(finding: Finding) -> str:
    """The finding as a sentence."""
    return str(finding.evidence.get("text") or finding.kind.replace("_", " "))
