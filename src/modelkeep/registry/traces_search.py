"""Searches of traces: the filter language of ``search_traces``, and pages that stay right while traces are added.

Clauses about spans must hold for one and the same span. An assessment of a whole session counts for each of its
traces. A filter that matches few traces leads the search; else they are read newest first until the page is full.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.registry import queries, traces
from modelkeep.registry.filters import COMPARISONS, NULLS, TEXT_OPERATORS, Clause, Language, Order
from modelkeep.registry.queries import Attribute, Part, Search, Values
from modelkeep.store.bulk import encode, fetch
from modelkeep.store.tables import INDEXED_TEXT

FEW = 2000
"""A filter that matches at most so many traces leads the search."""

MAX_PATTERN = 1000
"""Characters of a regular expression."""

_TEXT = TEXT_OPERATORS | {"RLIKE"}
_KEYED = frozenset({"=", "!=", "LIKE", "ILIKE", "RLIKE"}) | NULLS
_NAMES = {
    "attribute": "attribute",
    "attributes": "attribute",
    "trace": "attribute",
    "tag": "tag",
    "tags": "tag",
    "metadata": "metadata",
    "request_metadata": "metadata",
    "span": "span",
    "feedback": "feedback",
    "expectation": "expectation",
    "issue": "issue",
}
_NUMBERS = ("timestamp_ms", "execution_time_ms", "end_time_ms")
_STANDS_FOR = {"name": ("tag", traces.NAME), "run_id": ("metadata", traces.SOURCE_RUN)}
SEARCH = Search(
    language=Language(
        entities=_NAMES,
        attributes={
            **dict.fromkeys(_NUMBERS, "number"),
            **dict.fromkeys(
                ("request_id", "status", "client_request_id", "name", "run_id", "prompt", "text", "experiment_id"),
                "text",
            ),
        },
        aliases={
            "timestamp": "timestamp_ms",
            "execution_time": "execution_time_ms",
            "end_time": "end_time_ms",
            "trace_id": "request_id",
        },
        orders=frozenset({*_NUMBERS, "experiment_id", "status", "request_id", "name", "run_id"}),
        operators={
            "attribute": _TEXT | NULLS,
            "tag": _KEYED,
            "metadata": _KEYED,
            "span": _TEXT,
            "feedback": _KEYED | COMPARISONS,
            "expectation": _KEYED | COMPARISONS,
            "issue": frozenset({"="}),
        },
        numbers=frozenset({"feedback", "expectation"}),
    ),
    base="traces r",
    columns="r.*",
    attributes={
        "request_id": Attribute("r.trace_id"),
        "experiment_id": Attribute("r.experiment", whole=True),
        "status": Attribute("r.status"),
        "client_request_id": Attribute("r.client_request_id"),
        "timestamp_ms": Attribute("r.start_ms"),
        "execution_time_ms": Attribute("r.duration_ms", nullable=True),
        "end_time_ms": Attribute("(r.start_ms + coalesce(r.duration_ms, 0))"),
    },
    values={"tag": Values("trace_tags", "trace"), "metadata": Values("trace_metadata", "trace")},
    ties=(("timestamp_ms", True), ("request_id", False)),
)
_SPAN_COLUMNS = {"name": "s.name", "type": "s.type", "status": "s.status", "content": "s.content"}


def find(
    conn: Connection,
    within: Sequence[int],
    text: str,
    orders: Sequence[str],
    limit: int,
    token: str,
    *,
    model_id: str = "",
) -> tuple[list[Any], str]:
    """A page of rows of ``traces`` of these experiments, newest first unless ordered, and the next token.

    Args:
        model_id: Only those that a logged model made; empty for all.

    Raises:
        Invalid: The filter, the order or the token makes no sense.
    """
    keys = [_renamed(SEARCH.language.parse_order(key)) for key in orders]
    terms, joins = queries.ordering(SEARCH, keys)
    query = queries.signature(sorted(within), text, list(orders), model_id)
    base, wanted = matching(conn, within, text, model_id)
    last = queries.read_token(token, query, len(terms))
    if last is not None:
        wanted.append(queries.after(terms, last))
    joined = Part(
        " ".join([base.sql, *(join.sql for join in joins)]),
        (*base.values, *(value for join in joins for value in join.values)),
    )
    with patterns(text):
        rows = queries.select(conn, SEARCH.columns, joined, wanted, terms, limit + 1)
    return rows[:limit], queries.write_token(query, rows, limit, len(terms))


def matching(conn: Connection, within: Sequence[int], text: str, model_id: str = "") -> tuple[Part, list[Part]]:
    """``FROM`` and conditions of the traces ``r`` of experiments that a filter matches. Raises ``Invalid``."""
    clauses = _parsed(conn, text)
    if model_id:
        clauses.append(Clause("metadata", "mlflow.modelId", "=", model_id))
    postgres = conn.dialect.name == "postgresql"
    among = Part(f"r.experiment IN ({', '.join('?' * len(within))})", tuple(within))
    base, values = SEARCH.base, tuple[Any, ...]()
    fewest = FEW + 1
    for clause in clauses:
        leader = _leader(clause, among, postgres)
        if leader is not None:
            count = f"SELECT count(*) FROM ({leader.sql} LIMIT {FEW + 1}) n"
            ((found,),) = fetch(conn, count, leader.values)
            if found < fewest:
                join = "JOIN" if postgres else "CROSS JOIN"  # SQLite then keeps the order of the tables
                few = f"(SELECT DISTINCT e.trace FROM ({leader.sql}) e)"
                base, values = f"{few} l {join} traces r ON r.id = l.trace", leader.values
                fewest = found
    of_spans = [clause for clause in clauses if clause.entity == "span"]
    wanted = [among, *(_condition(clause, among, postgres) for clause in clauses if clause.entity != "span")]
    if of_spans:
        parts = [_of_span(clause, postgres) for clause in of_spans]
        held = " AND ".join(part.sql for part in parts)
        told = tuple(value for part in parts for value in part.values)
        wanted.append(Part(f"EXISTS (SELECT 1 FROM trace_spans s WHERE s.trace = r.id AND {held})", told))
    return Part(base, values), wanted


def _parsed(conn: Connection, text: str) -> list[Clause]:
    clauses = []
    for clause in SEARCH.language.parse(text):
        if clause.op == "RLIKE":
            if len(clause.value) > MAX_PATTERN:
                raise Invalid(f"The pattern of RLIKE has {len(clause.value)} characters; at most {MAX_PATTERN}")
            if conn.dialect.name != "postgresql":
                _teach(conn)
        if clause.entity == "attribute" and clause.key in _STANDS_FOR:
            clause = Clause(*_STANDS_FOR[clause.key], clause.op, clause.value)
        elif clause.entity == "attribute" and clause.key == "text":
            clause = Clause("span", "content", clause.op, clause.value)
        elif clause.entity == "attribute" and clause.key == "prompt":
            _check_prompt(clause)
        if clause.entity == "span":
            _check_span(clause)
        if clause.entity == "issue" and clause.key != "id":
            raise Invalid(f"Invalid issue attribute '{clause.key}'. Supported attributes: id")
        clauses.append(clause)
    return clauses


def _check_prompt(clause: Clause) -> None:
    if clause.op != "=" or clause.value.count("/") != 1:
        raise Invalid("Invalid prompts filter: expected prompt = 'name/version'")


def _check_span(clause: Clause) -> None:
    named = clause.key.startswith("attributes.") and len(clause.key) > len("attributes.")
    if clause.key not in _SPAN_COLUMNS and not named:
        raise Invalid(
            f"Invalid span attribute '{clause.key}'. Supported attributes: name, status, type, content,"
            " attributes.<attribute_name>."
        )
    if clause.key == "content" and clause.op not in ("LIKE", "ILIKE", "RLIKE"):
        raise Invalid(f"span.content comparator '{clause.op}' not one of ['ILIKE', 'LIKE', 'RLIKE']")


def _renamed(order: Order) -> Order:
    if order.entity == "attribute" and order.key in _STANDS_FOR:
        return Order(*_STANDS_FOR[order.key], order.ascending)
    return order


def _teach(conn: Connection) -> None:
    """Give SQLite its REGEXP: RE2, whose time grows with the text and not with what a pattern makes of it."""
    import pyarrow as pa  # not before it is asked for: nothing else in the server's memory at rest needs it
    import pyarrow.compute as pc

    def matches(pattern: str, text: str | None) -> bool:
        return text is not None and bool(pc.match_substring_regex(pa.scalar(text), pattern).as_py())

    driver: Any = conn.connection.driver_connection
    driver.create_function("regexp", 2, matches, deterministic=True)


@contextlib.contextmanager
def patterns(text: str) -> Iterator[None]:
    """What a database says of a filter's regular expressions becomes ``Invalid``."""
    try:
        yield
    except Exception as error:
        told = str(error)
        regular = "regular expression" in told or "user-defined function raised exception" in told
        if regular and "rlike" in text.lower():
            raise Invalid(f"The pattern of RLIKE is no regular expression: {told[:200]}") from None
        raise


def _leader(clause: Clause, among: Part, postgres: bool) -> Part | None:
    """The traces a clause matches, perhaps repeated, as an index gives them; None when none helps."""
    if clause.entity in ("feedback", "expectation") and clause.op != "IS NULL":
        mine, sessions = _assessed(clause, among, postgres)
        sql = (
            f"SELECT a.trace FROM trace_assessments a WHERE {mine.sql}"
            f" UNION ALL SELECT r.id FROM traces r WHERE {among.sql} AND {sessions.sql}"
        )
        return Part(sql, (*mine.values, *among.values, *sessions.values))
    if clause.entity == "issue":
        return Part(
            "SELECT a.trace FROM trace_assessments a WHERE a.kind = 'issue' AND a.name = ?", (clause.value,)
        )
    if clause.op != "=" or clause.entity not in ("tag", "metadata"):
        return None
    # a plain comparison of the value would keep SQLite from using the index on its beginning
    sql = (
        f"SELECT v.trace FROM {SEARCH.values[clause.entity].table} v"
        f" WHERE v.key = ? AND substr(v.value, 1, {INDEXED_TEXT}) = ? AND v.value || '' = ?"
    )
    values = (clause.key, clause.value[:INDEXED_TEXT], clause.value)
    if clause.key != traces.SOURCE_RUN:
        return Part(sql, values)
    linked = "SELECT k.trace FROM trace_links k WHERE k.kind = 'run' AND k.target = ?"
    return Part(f"{sql} UNION ALL {linked}", (*values, clause.value))


def _condition(clause: Clause, among: Part, postgres: bool) -> Part:
    if clause.entity in ("feedback", "expectation"):
        mine, sessions = _assessed(clause, among, postgres)
        direct = f"EXISTS (SELECT 1 FROM trace_assessments a WHERE a.trace = r.id AND {mine.sql})"
        either = f"({direct} OR coalesce({sessions.sql}, 1 = 0))"
        return Part(f"NOT {either}" if clause.op == "IS NULL" else either, (*mine.values, *sessions.values))
    if clause.entity == "issue":
        sql = "SELECT 1 FROM trace_assessments a WHERE a.trace = r.id AND a.kind = 'issue' AND a.name = ?"
        return Part(f"EXISTS ({sql})", (clause.value,))
    linked = "EXISTS (SELECT 1 FROM trace_links k WHERE k.trace = r.id AND k.kind = ? AND k.target = ?)"
    if clause.entity == "attribute" and clause.key == "prompt":
        return Part(linked, ("prompt", clause.value))
    if clause.entity == "attribute" and clause.op in NULLS:
        return Part(f"{SEARCH.attributes[clause.key].sql} {clause.op}")
    told = queries.condition(SEARCH, clause, postgres)
    if clause.key == traces.SOURCE_RUN and clause.op == "=":
        return Part(f"({told.sql} OR {linked})", (*told.values, "run", clause.value))
    return told


def _assessed(clause: Clause, among: Part, postgres: bool) -> tuple[Part, Part]:
    """What assessments ``a`` must be like, and the condition that one of them is of the session of ``r``."""
    mine = "a.kind = ? AND a.name = ? AND a.valid = 1"
    values: tuple[Any, ...] = (clause.entity, clause.key)
    if clause.op not in NULLS:
        if clause.op[0] in "<>":
            told = Part(f"a.numeric = 1 AND a.number {clause.op} ?", (clause.value,))
        else:
            text = "(a.value::json #>> '{}')" if postgres else "json_extract(a.value, '$')"
            boolean = "WHEN a.value IN ('true', 'false') THEN a.value"  # which SQLite has as 1 and 0
            told = queries.compare(
                f"CASE {boolean} ELSE CAST({text} AS TEXT) END", Clause("", "", clause.op, clause.value), postgres
            )
        mine, values = f"{mine} AND {told.sql}", (*values, *told.values)
    sessions = (
        "r.session IN (SELECT t.session FROM trace_assessments a JOIN traces t ON t.id = a.trace"
        f" WHERE {mine} AND a.session IS NOT NULL AND t.session IS NOT NULL AND {among.sql.replace('r.', 't.')})"
    )
    return Part(mine, values), Part(sessions, (*values, *among.values))


def _of_span(clause: Clause, postgres: bool) -> Part:
    column = _SPAN_COLUMNS.get(clause.key)
    if column is not None:
        return queries.compare(column, clause, postgres)
    key = clause.key.removeprefix("attributes.")
    if postgres:
        each = "json_array_elements(s.content::json -> 'attributes') a"
        name = "a ->> 'key'"
        text = (
            "coalesce(a #>> '{value,string_value}', a #>> '{value,int_value}', a #>> '{value,bool_value}',"
            " a #>> '{value,double_value}', (a -> 'value')::text)"
        )
    else:
        each = "json_each(s.content, '$.attributes') a"
        name = "json_extract(a.value, '$.key')"
        text = (
            "coalesce(json_extract(a.value, '$.value.string_value'), CASE json_type(a.value, '$.value.bool_value')"
            " WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' END,"
            " CAST(json_extract(a.value, '$.value.int_value') AS TEXT),"
            " CAST(json_extract(a.value, '$.value.double_value') AS TEXT), json_extract(a.value, '$.value'))"
        )
    told = queries.compare(text, clause, postgres)
    there = "position(? in s.content) > 0" if postgres else "instr(s.content, ?) > 0"  # spares reading most JSON
    sql = f"{there} AND EXISTS (SELECT 1 FROM {each} WHERE {name} = ? AND {told.sql})"
    return Part(sql, (f'"key":{encode(key)}', key, *told.values))
