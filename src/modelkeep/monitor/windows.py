"""Closing windows: served traffic cut by the clock, profiled, compared with what the version was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec.structs import replace
from sqlalchemy import Connection

from modelkeep.core.ports import BlobStore
from modelkeep.monitor import drift
from modelkeep.monitor import reference as references
from modelkeep.monitor.estimate import expected
from modelkeep.monitor.ingest import LATE
from modelkeep.monitor.policy import Policy
from modelkeep.monitor.reference import Reference
from modelkeep.monitor.traffic import INPUT, Traffic, inputs_of, outputs_of, profiled
from modelkeep.registry import captures, events, findings
from modelkeep.registry.captures import Capture
from modelkeep.registry.findings import Finding, Window
from modelkeep.stats import profile
from modelkeep.stats.profile import Profile
from modelkeep.store.database import Database

LOOK_BACK = 10
"""Windows before the last closed one in which rows that came late are still looked for."""
AT_ONCE = 50
"""Most windows closed in one call."""
BEGUN = 0.05
"""Share of an endpoint's very first window that may have passed before its first request."""
REMEMBERED = 500
"""Closed windows compared with, newest first."""


def close_due(
    db: Database,
    blobs: BlobStore,
    *,
    endpoint: str,
    model: str,
    version: int,
    reference: Reference | None,
    policy: Policy,
    now: float,
    classes: Sequence[Any] = (),
) -> list[Finding]:
    """Close every window of a version that is over: profile it, test it for drift, record it.

    Safe to call as often as one likes and to kill at any point: all windows of a call are recorded in one
    transaction, and a window is recorded once. One whose rows came late is closed again; its finding is not
    repeated. Only windows of ``stable`` traffic are tested, and only where one version had all of it for the whole
    window: half a day is no sample of a day.

    Args:
        reference: What the version was trained on; None skips the test.
        now: The clock, in seconds.
        classes: The model's classes in the order of its probabilities, for the estimate before labels come.

    Returns:
        The findings recorded now.
    """
    with db.read() as conn:
        known = findings.windows(conn, endpoint, version=version, limit=REMEMBERED)
        due, parts = _due(conn, known, endpoint, version, policy, now)
        whole = _whole(conn, endpoint, version, due, policy.window)
    if not due:
        return []
    traffic = Traffic(blobs)
    closed = []
    for mode, start in due[:AT_ONCE]:
        own = [part for part in parts if part.mode == mode]
        bare = Window(
            endpoint=endpoint, model=model, version=version, mode=mode, start=start, end=start + policy.window
        )
        before = next((w for w in known if (w.mode, w.start) == (mode, start)), None)
        rows = traffic.between(own, bare.start, bare.end)
        known_training = reference if (mode, start) in whole else None
        window, found = _close(bare, rows, own, known_training, policy, blobs, classes)
        if before is not None:
            window = replace(window, labels=before.labels, metrics={**_without_late(before), **window.metrics})
        closed.append((window, found))

    def record(conn: Connection) -> list[Finding]:
        return [made for window, found in closed if (made := _record(conn, window, found, now)) is not None]

    return db.write(record)


def _due(
    conn: Connection, known: list[Window], endpoint: str, version: int, policy: Policy, now: float
) -> tuple[list[tuple[str, float]], list[Capture]]:
    """Windows to close, oldest first, and the parts they are made of."""
    length = policy.window
    over = math.floor((now - policy.grace) / length)  # windows below this number are over
    late = [window for window in known if LATE in window.metrics]
    last = max((round(window.end / length) for window in known), default=None)
    if last is not None and over <= last and not late:
        return [], []
    first = 0.0 if last is None else (last - LOOK_BACK) * length
    first = min([first, *(window.start for window in late)])
    parts = captures.between(conn, endpoint, first, over * length, version)
    closed = {(window.mode, round(window.start / length)) for window in known if LATE not in window.metrics}
    due = {
        (part.mode, number)
        for part in parts
        for number in range(math.floor(part.start / length), math.floor(part.end / length) + 1)
        if number < over and number * length >= first and (part.mode, number) not in closed
    }
    return [(mode, number * length) for mode, number in sorted(due, key=lambda one: one[1])], parts


def _whole(
    conn: Connection, endpoint: str, version: int, due: Sequence[tuple[str, float]], length: float
) -> set[tuple[str, float]]:
    """Those of the windows in which the version had all stable traffic from beginning to end."""
    began = captures.span(conn, endpoint)
    found = set()
    for mode, start in due[:AT_ONCE]:
        if mode != "stable" or began is None or began[0] > start + BEGUN * length:
            continue
        around = captures.between(conn, endpoint, start, start + length)
        if all(part.version == version for part in around if part.mode == "stable" and part.rows):
            found.add((mode, start))
    return found


def _close(
    window: Window,
    rows: pa.Table | None,
    parts: list[Capture],
    reference: Reference | None,
    policy: Policy,
    blobs: BlobStore,
    classes: Sequence[Any],
) -> tuple[Window, dict[str, Any] | None]:
    """The window as it is recorded, and the evidence of drift if there is any."""
    begun = [part for part in parts if window.start <= part.start < window.end]
    window = replace(
        window, errors=sum(part.errors for part in begun), dropped=sum(part.dropped for part in begun)
    )
    if rows is None:
        return window, None
    described = profile.partial(profiled(rows))
    window = replace(
        window,
        rows=rows.num_rows,
        profile=blobs.put(described.to_bytes()),
        latency=_latency(rows),
        metrics=expected(outputs_of(rows, classes), policy.metric),
    )
    if reference is None or window.mode != "stable":
        return window, None
    served = inputs_of(rows)
    plain = Profile(described.rows, {name: described.columns[INPUT + name] for name in served.column_names})
    tested = drift.detect(reference, references.count(reference, served), policy.false_alarms, plain)
    if not any(one.drifted for one in tested):
        return window, None
    return window, drift.evidence(tested, rows.num_rows, policy.false_alarms)


def _latency(rows: pa.Table) -> dict[str, float]:
    taken = rows.column("latency_ms").drop_null().to_numpy()
    if len(taken) == 0:
        return {}
    found = np.quantile(taken, [0.5, 0.9, 0.95, 0.99])
    return {name: round(float(value), 4) for name, value in zip(("p50", "p90", "p95", "p99"), found, strict=True)}


def _without_late(window: Window) -> dict[str, Any]:
    return {name: value for name, value in window.metrics.items() if name != LATE}


def _record(conn: Connection, window: Window, evidence: dict[str, Any] | None, now: float) -> Finding | None:
    number = findings.put_window(conn, window)
    if evidence is None:
        return None
    return tell(conn, replace(window, id=number), "drift", evidence, now)


def tell(conn: Connection, window: Window, kind: str, evidence: dict[str, Any], now: float) -> Finding | None:
    """Record a finding about a window with its event, once per window and kind; None when it was told before."""
    same = findings.findings(conn, window.model, kind=kind, version=window.version, since=window.start)
    if any(one.window == window.id for one in same):
        return None
    finding = Finding(
        model=window.model,
        endpoint=window.endpoint,
        version=window.version,
        kind=kind,
        at=now,
        window=window.id,
        evidence={**evidence, "start": window.start, "end": window.end},
    )
    made = replace(finding, id=findings.add(conn, finding))
    subject = f"{window.model}@{window.version}"
    events.append(conn, f"finding.{kind}", subject, {"finding": made.id, "text": evidence["text"]}, now=now)
    return made
