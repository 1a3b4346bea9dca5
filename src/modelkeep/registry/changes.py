"""What happens to runs while they run, done together: begin, log, end. A thousand calls cost a few statements.

Each call is checked before anything is written, so that one that is wrong fails alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from operator import itemgetter
from typing import Any, TypeVar

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Conflict, Invalid, NotFound, Refused
from modelkeep.registry import holds
from modelkeep.store import tables
from modelkeep.store.bulk import encode, fetch, insert_rows, run_many, select_in
from modelkeep.store.writer import Mergeable

RUN_NAME = "mlflow.runName"
ENDED = ("FINISHED", "FAILED", "KILLED")
REPLACE = "ON CONFLICT (run, key) DO UPDATE SET value = excluded.value"
NEWER = (
    "ON CONFLICT (run, key) DO UPDATE SET value = excluded.value, timestamp_ms = excluded.timestamp_ms, "
    "step = excluded.step WHERE (excluded.step, excluded.timestamp_ms, coalesce(excluded.value, 0)) >= "
    "(latest_metrics.step, latest_metrics.timestamp_ms, coalesce(latest_metrics.value, 0))"
)

Point = tuple[str, float, int, int]
"""Key, value (NaN and infinities allowed), timestamp in milliseconds, step."""

_ROW = "id, run_id, experiment, name, status, lifecycle_stage, user_id, artifact_uri, start_ms, end_ms"
_NEW = ("run_id", "experiment", "name", "user_id", "source_name", "artifact_uri", "start_ms")
_POINT = ("run", "key", "timestamp_ms", "step", "value", "is_nan")
_LATEST = ("run", "key", "experiment", "start_ms", "value", "timestamp_ms", "step")
_TEXT = ("run", "key", "value", "experiment", "start_ms")


class Row(Struct):
    """What a row of ``runs`` says of a run."""

    id: int
    run_id: str
    experiment: int
    name: str
    status: str
    lifecycle_stage: str
    user_id: str
    artifact_uri: str
    start_ms: int
    end_ms: int | None


class Change(Mergeable):
    """One of the changes below; they are done together."""

    __slots__ = ()

    @staticmethod
    def merge(conn: Connection, works: Sequence[Any]) -> list[Any]:
        """Do these changes: those of one run in order, begins before logs before ends."""
        return _Together(conn, works).done()


class Begin(Change):
    """Begin a run; gives its ``Row``.

    Args:
        tags: With ``mlflow.runName``.
        run_id: Only to keep the id of a run made elsewhere.

    Raises:
        NotFound: There is no such experiment.
        Invalid: The experiment was deleted.
    """

    __slots__ = ("experiment", "name", "run_id", "source", "start_ms", "tags", "user")

    def __init__(
        self,
        experiment: int,
        name: str,
        start_ms: int,
        tags: Mapping[str, str],
        *,
        user: str = "",
        source: str = "",
        run_id: str | None = None,
    ) -> None:
        self.experiment = experiment
        self.name = name
        self.start_ms = start_ms
        self.tags = tags
        self.user = user
        self.source = source
        self.run_id = run_id or secrets.token_hex(16)


class Log(Change):
    """Add to a run; gives None. Repeating it changes nothing.

    Args:
        points: A point equal to one that is kept is kept once.
        params: By key; written once.
        tags: By key; the last value counts. ``mlflow.runName`` also names the run.

    Raises:
        NotFound: There is no such run.
        Conflict: A param has another value already, or the run was deleted.
        Refused: A tag has another value already, and the run is under legal hold.
    """

    __slots__ = ("params", "points", "run_id", "tags")

    def __init__(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.run_id = run_id
        self.points = points
        self.params = params
        self.tags = tags


class End(Change):
    """Change a run's status, end or name; gives its ``Row`` afterwards. What is None stays.

    Raises:
        NotFound: There is no such run.
        Conflict: The run was deleted.
        Refused: The run is under legal hold, and has ended or has another name.
    """

    __slots__ = ("end_ms", "name", "run_id", "status")

    def __init__(self, run_id: str, status: str | None, end_ms: int | None, name: str | None) -> None:
        self.run_id = run_id
        self.status = status
        self.end_ms = end_ms
        self.name = name


R = TypeVar("R", Log, End)


class _Together:
    """Changes on their way into the database."""

    def __init__(self, conn: Connection, works: Sequence[Any]) -> None:
        self.conn = conn
        self.works = works
        self.results: list[Any] = [None] * len(works)
        self.tags: dict[tuple[int, str], tuple[int, str, str, int, int]] = {}
        self.changed: dict[int, Row] = {}

    def done(self) -> list[Any]:
        begins: list[tuple[int, Begin]] = []
        logs: list[tuple[int, Log]] = []
        ends: list[tuple[int, End]] = []
        kinds: dict[type, list[Any]] = {Begin: begins, Log: logs, End: ends}
        for numbered in enumerate(self.works):
            kinds[type(numbered[1])].append(numbered)
        if begins:
            self._begin(begins)
        named = {work.run_id for _, work in logs}
        if ends:
            named |= {work.run_id for _, work in ends}
        self.runs = {row[1]: Row(*row) for row in select_in(self.conn, _ROW, tables.runs, "run_id", named)}
        logs, ends = self._unheld(self._wanted(logs), self._wanted(ends))
        if any([work.params for _, work in logs]):  # noqa: C419 - a list is twice as fast, here and below
            logs = self._log_params(logs)
        if points := [work for _, work in logs if work.points]:
            self._log_points(points)
        for _, log in logs:
            if log.tags:
                self._tag(self.runs[log.run_id], log.tags.items())
        for at, end in ends:
            self._end(at, end)
        self._write_changes()
        return self.results

    def _unheld(
        self, logs: list[tuple[int, Log]], ends: list[tuple[int, End]]
    ) -> tuple[list[tuple[int, Log]], list[tuple[int, End]]]:
        """Those that change nothing a hold keeps; the others have their fault as result.

        Points and params are only ever added, so that a hold has to be looked for only where tags or ends come.
        """
        told = {work.run_id for _, work in logs if work.tags} | {work.run_id for _, work in ends}
        held = _Held(self.conn, [self.runs[run_id] for run_id in told]) if told else None
        if held is None or not held.tags:
            return logs, ends
        for at, log in logs:
            self.results[at] = held.fault(self.runs[log.run_id], log.tags) if log.tags else None
        for at, end in ends:
            self.results[at] = held.of_end(self.runs[end.run_id], end)
        return (
            [(at, log) for at, log in logs if self.results[at] is None],
            [(at, end) for at, end in ends if self.results[at] is None],
        )

    def _wanted(self, works: list[tuple[int, R]]) -> list[tuple[int, R]]:
        """Those whose run takes changes; the others have their fault as result."""
        kept = []
        for at, work in works:
            row = self.runs.get(work.run_id)
            if row is None:
                self.results[at] = NotFound(f"Run with id={work.run_id} not found")
            elif row.lifecycle_stage != "active":
                self.results[at] = not_active(work.run_id, row.lifecycle_stage)
            else:
                kept.append((at, work))
        return kept

    def _begin(self, begins: list[tuple[int, Begin]]) -> None:
        numbers = {work.experiment for _, work in begins}
        columns = "id, artifact_location, lifecycle_stage"
        known = {row[0]: row for row in select_in(self.conn, columns, tables.experiments, "id", numbers)}
        rows = []
        made: list[tuple[int, Begin, str]] = []
        for at, work in begins:
            fault, uri = _place(known.get(work.experiment), work)
            if fault is not None:
                self.results[at] = fault
                continue
            made.append((at, work, uri))
            rows.append((work.run_id, work.experiment, work.name, work.user, work.source, uri, work.start_ms))
        insert_rows(self.conn, tables.runs, _NEW, rows)
        numbered = dict(select_in(self.conn, "run_id, id", tables.runs, "run_id", [row[0] for row in rows]))
        for at, work, uri in made:
            number = numbered[work.run_id]
            told = (work.experiment, work.name, "RUNNING", "active", work.user, uri, work.start_ms, None)
            self.results[at] = Row(number, work.run_id, *told)
            for key, value in work.tags.items():
                self.tags[number, key] = (number, key, value, work.experiment, work.start_ms)

    def _log_points(self, logs: list[Log]) -> None:
        rows: list[tuple[Any, ...]] = []
        for work in logs:
            number = self.runs[work.run_id].id
            rows += [(number, key, ms, step, value, 0) for key, value, ms, step in work.points]
        if any([row[4] != row[4] for row in rows]):  # noqa: C419 - NaN; SQLite keeps none
            rows = [(*row[:4], 0.0, 1) if isnan(row[4]) else row for row in rows]
        insert_rows(self.conn, tables.metrics, _POINT, rows, "ON CONFLICT DO NOTHING")
        places = {run.id: (run.experiment, run.start_ms) for run in self.runs.values()}
        last = [
            (number, key, *places[number], None if nan else value, ms, step)
            for number, key, ms, step, value, nan in _last(rows)
        ]
        insert_rows(self.conn, tables.latest_metrics, _LATEST, last, NEWER)

    def _log_params(self, logs: list[tuple[int, Log]]) -> list[tuple[int, Log]]:
        """The logs whose params agree with what is kept; theirs are written."""
        pairs = {(self.runs[work.run_id].id, key) for _, work in logs for key in work.params or ()}
        kept = {(run, key): value for run, key, value in _pairs(self.conn, pairs)}
        rows = []
        agreeing = []
        for at, work in logs:
            run = self.runs[work.run_id]
            given = work.params or {}
            changed = next((key for key, value in given.items() if kept.get((run.id, key), value) != value), None)
            if changed is not None:
                self.results[at] = Conflict(
                    f"Changing param values is not allowed. Param with key='{changed}' was already logged with"
                    f" value='{kept[run.id, changed]}' for run ID='{run.run_id}'. Attempted logging new value"
                    f" '{given[changed]}'."
                )
                continue
            agreeing.append((at, work))
            for key, value in given.items():
                if (run.id, key) not in kept:
                    kept[run.id, key] = value
                    rows.append((run.id, key, value, run.experiment, run.start_ms))
        insert_rows(self.conn, tables.params, _TEXT, rows)
        return agreeing

    def _tag(self, run: Row, tags: Iterable[tuple[str, str]]) -> None:
        for key, value in tags:
            self.tags[run.id, key] = (run.id, key, value, run.experiment, run.start_ms)
            if key == RUN_NAME and value:
                run.name = value
                self.changed[run.id] = run

    def _end(self, at: int, work: End) -> None:
        run = self.runs[work.run_id]
        run.status = work.status or run.status
        run.end_ms = run.end_ms if work.end_ms is None else work.end_ms
        if work.name:
            self._tag(run, [(RUN_NAME, work.name)])
        self.changed[run.id] = run
        self.results[at] = run

    def _write_changes(self) -> None:
        insert_rows(self.conn, tables.tags, _TEXT, list(self.tags.values()), REPLACE)
        if self.changed:
            rows = [(run.name, run.status, run.end_ms, run.id) for run in self.changed.values()]
            run_many(self.conn, "UPDATE runs SET name = ?, status = ?, end_ms = ? WHERE id = ?", rows)


class _Held:
    """What stays of those runs that are under legal hold."""

    def __init__(self, conn: Connection, runs: Sequence[Row]) -> None:
        self.conn = conn
        self.tags: dict[str, dict[str, str]] = {}
        held = holds.among_runs(conn, [run.run_id for run in runs])
        numbers = {run.id: run.run_id for run in runs if run.run_id in held}
        if numbers:
            self.tags = {run_id: {} for run_id in held}
            for number, key, value in select_in(conn, "run, key, value", tables.tags, "run", numbers):
                self.tags[numbers[number]][key] = value

    def fault(self, run: Row, tags: Mapping[str, str]) -> Refused | None:
        """Why these tags cannot be set; what is set from now on stays too."""
        kept = self.tags.get(run.run_id)
        if kept is None:
            return None
        key = holds.changed(tags, kept)
        if key is not None:
            return holds.refusal(self.conn, "run", run.run_id, key)
        kept.update(tags)
        return None

    def of_end(self, run: Row, end: End) -> Refused | None:
        """Why a run cannot be changed so: it may end, but neither go on again nor change its name."""
        if run.run_id not in self.tags:
            return None
        ended = run.status in ENDED
        named = (("name", run.name, end.name or run.name),)
        state = (
            ("status", run.status, end.status or run.status),
            ("end_time", run.end_ms, end.end_ms or run.end_ms),
        )
        for key, kept, new in named + (state if ended else ()):
            if new != kept:
                return holds.refusal(self.conn, "run", run.run_id, key)
        return None


_rank = itemgetter(3, 2, 4)


def _last(points: list[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
    """The last point of each run's key: that of the highest step, then timestamp, then value."""
    points.sort(key=_rank)
    return {(point[0], point[1]): point for point in points}.values()


def _place(kept_in: tuple[Any, ...] | None, work: Begin) -> tuple[Exception | None, str]:
    """Why a run cannot begin in this row of ``experiments``, and where its artifacts go (empty: as usual)."""
    if kept_in is None:
        return NotFound(f"No Experiment with id={work.experiment} exists"), ""
    _, location, stage = kept_in
    if stage != "active":
        must = f"The experiment {work.experiment} must be in the 'active' state."
        return Invalid(f"{must} Current state is {stage}."), ""
    return None, f"{location.rstrip('/')}/{work.run_id}/artifacts" if location else ""


def not_active(run_id: str, stage: str) -> Conflict:
    """A run that was deleted takes no changes."""
    return Conflict(f"The run {run_id} must be in the 'active' state. Current state is {stage}.")


def _pairs(conn: Connection, pairs: Iterable[tuple[int, str]]) -> list[tuple[Any, ...]]:
    """Run, key and value of the params that are kept among these."""
    wanted = list(pairs)
    if conn.dialect.name == "postgresql":
        inner = "SELECT * FROM unnest(?::bigint[], ?::text[])"
        values: tuple[Any, ...] = ([run for run, _ in wanted], [key for _, key in wanted])
    else:
        inner = "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)"
        values = (encode(wanted),)
    return fetch(conn, f"SELECT run, key, value FROM params WHERE (run, key) IN ({inner})", values)
