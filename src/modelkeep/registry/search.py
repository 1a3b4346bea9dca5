"""Searches of runs and experiments.

Runs are found by the index that promises the fewest rows: a filter's, when it matches few; else the one that holds
them in the order asked for, read until the page is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from modelkeep.registry import leading, queries
from modelkeep.registry.filters import Clause, Language, Order
from modelkeep.registry.queries import Attribute, Part, Search, Term, Values
from modelkeep.store.tables import INDEXED_TEXT

MOST_GROUPS = 100
"""Of so many experiments and stages the first runs are read one by one; SQLite joins at most 500 selects."""

_NAMES = {
    "attribute": "attribute",
    "attributes": "attribute",
    "attr": "attribute",
    "tag": "tag",
    "tags": "tag",
}
_RUN_NAMES = {
    **_NAMES,
    "run": "attribute",
    "metric": "metric",
    "metrics": "metric",
    "param": "param",
    "params": "param",
    "parameter": "param",
    "parameters": "param",
    "dataset": "dataset",
    "datasets": "dataset",
}
_URI = (
    "CASE WHEN r.artifact_uri = '' THEN 'mlflow-artifacts:/' || r.experiment || '/' || r.run_id || '/artifacts'"
    " ELSE r.artifact_uri END"
)

RUNS = Search(
    language=Language(
        entities=_RUN_NAMES,
        attributes={
            "run_id": "text",
            "run_name": "text",
            "status": "text",
            "user_id": "text",
            "artifact_uri": "text",
            "start_time": "number",
            "end_time": "number",
        },
        aliases={
            "created": "start_time",
            "Created": "start_time",
            "run name": "run_name",
            "Run name": "run_name",
            "Run Name": "run_name",
        },
        listed=frozenset({"run_id"}),
    ),
    base="runs r",
    columns="r.*",
    attributes={
        "run_id": Attribute("r.run_id"),
        "run_name": Attribute("r.name"),
        "status": Attribute("r.status"),
        "user_id": Attribute("r.user_id"),
        "artifact_uri": Attribute(_URI),
        "start_time": Attribute("r.start_ms"),
        "end_time": Attribute("r.end_ms", nullable=True),
    },
    values={
        "metric": Values("latest_metrics", "run"),
        "param": Values("params", "run"),
        "tag": Values("tags", "run"),
    },
    ties=(("start_time", True), ("run_id", False)),
)

EXPERIMENTS = Search(
    language=Language(
        entities=_NAMES,
        attributes={
            "name": "text",
            "experiment_id": "text",
            "creation_time": "number",
            "last_update_time": "number",
        },
        nulls=frozenset({"tag"}),
    ),
    base="experiments r",
    columns="r.*",
    attributes={
        "name": Attribute("r.name"),
        "experiment_id": Attribute("r.id", whole=True),
        "creation_time": Attribute("r.created_ms"),
        "last_update_time": Attribute("r.updated_ms"),
    },
    values={"tag": Values("experiment_tags", "experiment")},
    ties=(("experiment_id", False),),
    kind="experiment",
    name="r.id",
)

STAGES = {"ACTIVE_ONLY": ("active",), "DELETED_ONLY": ("deleted",), "ALL": ("active", "deleted")}


def experiments(
    conn: Connection, text: str, orders: Sequence[str], view: str, limit: int, token: str
) -> tuple[list[Any], str]:
    """A page of rows of ``experiments``, newest first unless ordered, and the next token. Raises ``Invalid``."""
    default = [Order("attribute", "creation_time", False), Order("attribute", "experiment_id", True)]
    stages = _among("r.lifecycle_stage", STAGES[view])
    return queries.find(
        conn,
        EXPERIMENTS,
        text=text,
        orders=orders,
        limit=limit,
        token=token,
        conditions=[stages],
        sign=view,
        default=default,
    )


def runs(
    conn: Connection,
    within: Sequence[int],
    text: str = "",
    orders: Sequence[str] = (),
    view: str = "ACTIVE_ONLY",
    limit: int = 1000,
    token: str = "",
) -> tuple[list[Any], str]:
    """A page of rows of ``runs``, newest first unless ordered, and the next page's token.

    Args:
        within: Experiments' numbers.
        view: ``ACTIVE_ONLY``, ``DELETED_ONLY`` or ``ALL``.

    Raises:
        Invalid: The filter, the order or the token makes no sense.
    """
    clauses = RUNS.language.parse(text)
    keys = [RUNS.language.parse_order(key) for key in orders]
    query = queries.signature(sorted(within), text, orders, view)
    if not within:
        return [], ""
    return _Runs(conn, within, clauses, keys, STAGES[view], limit).page(query, token)


class _Runs:
    """One search of runs."""

    def __init__(
        self,
        conn: Connection,
        within: Sequence[int],
        clauses: Sequence[Clause],
        keys: Sequence[Order],
        stages: Any,
        limit: int,
    ) -> None:
        self.conn = conn
        self.within = within
        self.keys = keys
        self.postgres = conn.dialect.name == "postgresql"
        self.join = "JOIN" if self.postgres else "CROSS JOIN"  # SQLite then keeps the order of the tables
        self.terms, self.joins = queries.ordering(RUNS, keys)
        # the first term is the runs' start
        self.by_start = not keys or (keys[0].entity, keys[0].key) == ("attribute", "start_time")
        self.leader: leading.Lead | None = None
        self.led: list[Part] = []
        self.stages = stages
        self.limit = limit
        self.wanted = [_among("r.experiment", within), _among("r.lifecycle_stage", stages)]
        self._plan(clauses)

    def _plan(self, clauses: Sequence[Clause]) -> None:
        conditions = [self._condition(clause) for clause in clauses]  # all of them, or a mistake would go unsaid
        entries = _among("v.experiment", self.within)
        leads = {at: found for at, clause in enumerate(clauses) if (found := leading.lead(RUNS, clause, entries))}
        place = next(iter(self._groups()), None)
        page = leading.Newest(conditions, place, self.limit) if self.by_start else None
        self.leader = leading.choose(self.conn, list(leads.values()), page)
        for at, part in enumerate(conditions):
            if self.leader is not None and leads.get(at) is self.leader:
                self.led.append(part)  # what the leader matches meets its clause
            else:
                self.wanted.append(part)

    def page(self, query: str, token: str) -> tuple[list[Any], str]:
        last = queries.read_token(token, query, len(self.terms))
        by_key = bool(self.keys) and self.keys[0].entity in RUNS.values and self.leader is None
        rows = self._by_key(last, self.limit + 1) if by_key else self._plain(last, self.limit + 1)
        return rows[: self.limit], queries.write_token(query, rows, self.limit, len(self.terms))

    def _plain(self, last: Sequence[Any] | None, limit: int) -> list[Any]:
        """Rows from the filter's index, or from that of the runs."""
        conditions = list(self.wanted)
        if last is not None:
            conditions.append(queries.after(self.terms, last))
        if self.leader is None:
            return self._select(Part("runs r"), conditions, limit, self._groups())
        if not self.by_start:
            matching = self.leader.runs
            base = Part(f"({matching.sql}) l {self.join} runs r ON r.id = l.run", matching.values)
            return self._select(base, conditions, limit)
        rows: list[Any] = []
        start = last[0] if last is not None else None
        for found in leading.by_start(self.conn, self.leader, start, self.terms[0].descending, limit):
            if found is None:  # the index of the runs has these in order
                return self._select(Part("runs r"), [*self.led, *conditions], limit, self._groups())
            rows += self._select(leading.among(self.conn, found), conditions, limit - len(rows)) if found else []
            if len(rows) >= limit:
                break
        return rows

    def _select(
        self, base: Part, conditions: Sequence[Part], limit: int, groups: Sequence[Part] = ()
    ) -> list[Any]:
        joined = self._joined(base.sql, base.values)
        return queries.select(self.conn, "r.*", joined, conditions, self.terms, limit, groups)

    def _groups(self) -> list[Part]:
        """Each experiment and stage by itself, as the index of the runs has them; none when they are too many."""
        pairs = [(number, stage) for number in self.within for stage in self.stages]
        if len(pairs) > MOST_GROUPS:
            return []
        return [Part("r.experiment = ? AND r.lifecycle_stage = ?", pair) for pair in pairs]

    def _by_key(self, last: Sequence[Any] | None, limit: int) -> list[Any]:
        """Rows from the index that holds the first key's values in order: numbers, then NaN, then runs without."""
        rows: list[Any] = []
        for rank in (0, 1, 2):
            if len(rows) >= limit or (last is not None and last[0] > rank):
                continue
            rows += self._ranked(rank, last if last is not None and last[0] == rank else None, limit - len(rows))
        return rows

    def _ranked(self, rank: int, last: Sequence[Any] | None, limit: int) -> list[Any]:
        first = self.keys[0]
        table = RUNS.values[first.entity]
        conditions = list(self.wanted)
        rest = self.terms[2:]
        if rank == 2:
            conditions.append(
                Part(f"NOT EXISTS (SELECT 1 FROM {table.table} k WHERE k.run = r.id AND k.key = ?)", (first.key,))
            )
            base, groups = Part("runs r"), self._groups()
            inner, skipped = rest, 2
        else:
            same = _among("o0.experiment", self.within)
            conditions = [same, Part("o0.key = ?", (first.key,)), *conditions]
            conditions.append(Part("o0.value IS NULL" if rank else "o0.value IS NOT NULL"))
            base = Part(f"{table.table} o0 {self.join} runs r ON r.id = o0.run")
            groups = [Part("o0.experiment = ?", (number,)) for number in self.within[: MOST_GROUPS + 1]]
            groups = groups if len(groups) <= MOST_GROUPS else []
            value = Term("o0.value", not first.ascending)
            inner, skipped = (rest, 2) if rank else ([value, *rest], 1)
        if last is not None:
            conditions.append(queries.after(inner, last[skipped:]))
        later = self.joins[1:]
        joined = Part(
            " ".join([base.sql, *(join.sql for join in later)]), tuple(v for j in later for v in j.values)
        )
        nothing = "0" if first.entity == "metric" else "''"
        value_sql = "o0.value" if rank == 0 else nothing
        what = f"r.*, {rank} AS rank0" + (f", {value_sql} AS value0" if rank else "")

        def select(terms: Sequence[Term]) -> list[Any]:
            return queries.select(self.conn, what, joined, conditions, terms, limit, groups)

        if rank == 0 and first.entity != "metric":
            inner = [Term(f"substr(o0.value, 1, {INDEXED_TEXT})", inner[0].descending), *inner]
            return [self._without_prefix(row) for row in select(inner)]
        return select(inner)

    def _without_prefix(self, row: Any) -> Any:
        return _Row(row, len(self.terms))

    def _joined(self, base: str, values: tuple[Any, ...]) -> Part:
        joins = self.joins
        return Part(
            " ".join([base, *(join.sql for join in joins)]),
            (*values, *(value for join in joins for value in join.values)),
        )

    def _condition(self, clause: Clause) -> Part:
        if clause.entity != "dataset":
            return queries.condition(RUNS, clause, self.postgres)
        column = "i.context" if clause.key == "context" else f"d.{clause.key}"
        told = queries.compare(column, clause, self.postgres)
        joined = "run_datasets i JOIN datasets d ON d.id = i.dataset"
        return Part(f"EXISTS (SELECT 1 FROM {joined} WHERE i.run = r.id AND {told.sql})", told.values)


class _Row:
    """A row without the term that only helped to use an index."""

    def __init__(self, row: Any, terms: int) -> None:
        self._row = row
        self._terms = terms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)

    def __iter__(self) -> Any:
        kept = list(self._row)
        del kept[-self._terms]
        return iter(kept)


def _among(column: str, values: Sequence[Any]) -> Part:
    if len(values) == 1:
        return Part(f"{column} = ?", (values[0],))
    return Part(f"{column} IN ({', '.join('?' * len(values))})", tuple(values))
