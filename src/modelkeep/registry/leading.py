"""Which clause of a filter leads a search of runs, and the runs that it matches.

A clause's index gives the runs it matches without reading any other run. When it matches few, that is the way.
When the newest runs are asked for, it is the way also when it matches many: the index knows when each run started,
so only as many runs are read whole as a page holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.registry.filters import Clause
from modelkeep.registry.queries import Part, Search
from modelkeep.store.bulk import encode, fetch, number_array
from modelkeep.store.tables import INDEXED_TEXT

FEW = 2000
"""A clause that matches at most so many runs leads the search, in any order."""

SAMPLE = 256
"""So many of the newest runs say how far a search without a leader would have to read."""

ENTRIES = 2
"""Entries of a leader's index are counted and sorted in the time that a condition takes to look at a run."""

MOST = 100_000
"""A leader whose entries have to be sorted has at most so many."""

SPARE = 32
"""Runs read beyond a page: other clauses leave some out, and some started in the same millisecond."""

ALIKE = 5000
"""Runs of one millisecond at which the index of the runs, which orders these too, is better."""

GROWTH = 8
"""The next runs of a leader are so many times more, when the first were not enough."""


class Lead(Struct, frozen=True):
    """A clause's entries in its index.

    Attributes:
        table: With a column ``run``, the run's number, and ``start_ms``.
        wanted: The condition on an entry ``v``.
        sorted: The entries of an experiment are in the order of the runs' start.
        run: SQL of the run's number.
    """

    table: str
    wanted: Part
    sorted: bool
    run: str = "v.run"

    @property
    def runs(self) -> Part:
        """All runs that match, in no order."""
        return Part(f"SELECT {self.run} AS run FROM {self.table} v WHERE {self.wanted.sql}", self.wanted.values)

    def at_most(self, conn: Connection, most: int) -> bool:
        """Whether no more runs match."""
        entry = f"SELECT 1 FROM {self.table} v WHERE {self.wanted.sql} LIMIT 1 OFFSET ?"
        return not fetch(conn, entry, (*self.wanted.values, most))

    def count(self, conn: Connection) -> int:
        """How many runs match."""
        query = f"SELECT count(*) FROM {self.table} v WHERE {self.wanted.sql}"
        ((found,),) = fetch(conn, query, self.wanted.values)
        return int(found)


def lead(search: Search, clause: Clause, among: Part) -> Lead | None:
    """A clause's entries in its index; None when no index helps.

    Args:
        among: The condition that an entry ``v`` is of the experiments searched.
    """
    if clause.entity == "metric" and clause.op != "!=":
        wanted = Part(
            f"{among.sql} AND v.key = ? AND v.value {clause.op} ?", (*among.values, clause.key, clause.value)
        )
        return Lead("latest_metrics", wanted, clause.op == "=")
    if clause.entity in ("param", "tag") and clause.op == "=":
        prefix = f"{among.sql} AND v.key = ? AND substr(v.value, 1, {INDEXED_TEXT}) = ?"
        values = (*among.values, clause.key, clause.value[:INDEXED_TEXT])
        table = search.values[clause.entity].table
        if len(clause.value) < INDEXED_TEXT:  # then the prefix is the value
            return Lead(table, Part(prefix, values), True)
        # a plain comparison of the value would keep SQLite from using the index on its prefix
        return Lead(table, Part(f"{prefix} AND v.value || '' = ?", (*values, clause.value)), True)
    if clause.entity == "attribute" and clause.key in ("run_name", "run_id") and clause.op == "=":
        column = search.attributes[clause.key].sql.replace("r.", "v.")
        return Lead("runs", Part(f"{among.sql} AND {column} = ?", (*among.values, clause.value)), False, "v.id")
    return None


class Newest(Struct, frozen=True):
    """A search that wants runs in the order of their start.

    Attributes:
        conditions: What the filter wants of a run.
        place: The condition that a run is of one experiment and stage; None when there are too many of them.
        limit: Runs wanted.
    """

    conditions: Sequence[Part]
    place: Part | None
    limit: int

    def reach(self, conn: Connection) -> int:
        """How many runs must be looked at to find those wanted, as the newest ones let expect."""
        if self.place is None:
            return MOST
        newest = f"SELECT r.* FROM runs r WHERE {self.place.sql} ORDER BY r.start_ms DESC LIMIT {SAMPLE}"
        wanted = " AND ".join(part.sql for part in self.conditions)
        values = (*self.place.values, *(value for part in self.conditions for value in part.values))
        ((found,),) = fetch(conn, f"SELECT count(*) FROM ({newest}) r WHERE {wanted}", values)
        return self.limit * SAMPLE * 2 // max(2 * int(found), 1)


def choose(conn: Connection, leads: Sequence[Lead], newest: Newest | None) -> Lead | None:
    """The one of a search's leads that promises the least work; None when it is better done without.

    Args:
        newest: The search, when the order is that of the runs' start.
    """
    if newest is not None and len(leads) == 1 and leads[0].sorted:
        return leads[0]
    best = _fewest(conn, leads, FEW)
    if best is not None or newest is None or not leads:
        return best
    ordered = next((each for each in leads if each.sorted), None)
    if ordered is not None:
        return ordered
    most = min(ENTRIES * newest.reach(conn), MOST)
    return _fewest(conn, leads, most) if most > FEW else None


def _fewest(conn: Connection, leads: Sequence[Lead], most: int) -> Lead | None:
    """The one that matches the fewest runs, at most so many."""
    few = [each for each in leads if each.at_most(conn, most)]
    return few[0] if len(few) == 1 else min(few, key=lambda each: each.count(conn), default=None)


def by_start(
    conn: Connection, leader: Lead, first: Any, descending: bool, limit: int
) -> Iterator[list[int] | None]:
    """The runs a leader matches, a few at a time: each time all that started in some span, one span after another.

    Args:
        first: Milliseconds since 1970 from which to begin; None for the first run of all.
        limit: Runs that are enough, if all belong to the answer.

    Yields:
        The runs' numbers, in no order; None when too many started at once for this to be the way.
    """
    beyond, order = ("<=", "DESC") if descending else (">=", "ASC")
    wide = limit + SPARE
    while True:
        conditions, values = leader.wanted.sql, leader.wanted.values
        if first is not None:
            conditions, values = f"{conditions} AND v.start_ms {beyond} ?", (*values, first)
        entries = (
            f"SELECT {leader.run}, v.start_ms FROM {leader.table} v WHERE {conditions}"
            f" ORDER BY v.start_ms {order} LIMIT ?"
        )
        found = fetch(conn, entries, (*values, wide))
        if len(found) < wide:
            yield [run for run, _ in found]
            return
        # of those that started in the last millisecond some may be missing
        whole = [run for run, start in found if start != found[-1][1]]
        if whole:
            yield whole
            first = found[-1][1]
        elif len(found) > ALIKE:
            yield None
            return
        wide = min(wide * GROWTH, max(wide, MOST))


def among(conn: Connection, runs: Sequence[int]) -> Part:
    """``FROM`` of these rows ``r`` of runs, however many: their numbers travel as one parameter."""
    if conn.dialect.name == "postgresql":
        return Part("unnest(?::bigint[]) AS l(run) JOIN runs r ON r.id = l.run", (number_array(runs),))
    return Part("json_each(?) l CROSS JOIN runs r ON r.id = l.value", (encode(list(runs)),))
