"""Searches of logged models. A metric may be asked for on one dataset; the last value over its runs counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.registry import queries
from modelkeep.registry.filters import NULLS, TEXT_OPERATORS, Clause, Language, Order
from modelkeep.registry.queries import Attribute, Part, Search, Term, Values

_NAMES = {
    "attribute": "attribute",
    "attributes": "attribute",
    "metric": "metric",
    "metrics": "metric",
    "param": "param",
    "params": "param",
    "tag": "tag",
    "tags": "tag",
}
_COLUMNS = {
    "name": "r.name",
    "model_id": "r.model_id",
    "model_type": "r.model_type",
    "status": "r.status",
    "source_run_id": "r.source_run_id",
    "experiment_id": "r.experiment",
    "creation_timestamp_ms": "r.created_ms",
    "last_updated_timestamp_ms": "r.updated_ms",
}
_SEARCH = Search(
    language=Language(
        entities=_NAMES,
        attributes={name: "number" if name.endswith("_ms") else "text" for name in _COLUMNS},
        aliases={
            "creation_time": "creation_timestamp_ms",
            "creation_timestamp": "creation_timestamp_ms",
            "last_updated_timestamp": "last_updated_timestamp_ms",
        },
        operators={"param": TEXT_OPERATORS | NULLS, "tag": TEXT_OPERATORS | NULLS},
    ),
    base="logged_models r",
    columns="r.*",
    attributes={name: Attribute(sql, whole=name == "experiment_id") for name, sql in _COLUMNS.items()},
    values={"param": Values("logged_model_params", "model"), "tag": Values("logged_model_tags", "model")},
    ties=(("creation_timestamp_ms", True), ("model_id", False)),
)


class By(Struct, frozen=True):
    """A key of an order; a metric's may be of one dataset."""

    field: str
    ascending: bool = True
    dataset_name: str = ""
    dataset_digest: str = ""


def find(
    conn: Connection,
    within: Sequence[int],
    text: str,
    of: Sequence[tuple[str, str]],
    orders: Sequence[By],
    limit: int,
    token: str,
) -> tuple[list[Any], str]:
    """A page of rows of ``logged_models``, newest first unless ordered, and the next token.

    Args:
        of: Names and digests (empty: any) of the datasets metrics in the filter must be of. If it names no metric,
            models must have some metric on one of them.

    Raises:
        Invalid: The filter, the order or the token makes no sense.
    """
    postgres = conn.dialect.name == "postgresql"
    clauses = _SEARCH.language.parse(text)
    query = queries.signature(list(within), text, list(of), [repr(order) for order in orders])
    if not within:
        return [], ""
    terms, joins = _ordering(orders)
    marks = ", ".join("?" * len(within))
    wanted = [Part(f"r.experiment IN ({marks})", tuple(within)), Part("r.lifecycle_stage = 'active'")]
    wanted += [_condition(clause, of, postgres) for clause in clauses]
    if of and all(clause.entity != "metric" for clause in clauses):
        wanted.append(_measured(Part("v.model = r.id"), of))
    last = queries.read_token(token, query, len(terms))
    if last is not None:
        wanted.append(queries.after(terms, last))
    base = Part(
        " ".join([_SEARCH.base, *(join.sql for join in joins)]), tuple(v for join in joins for v in join.values)
    )
    rows = queries.select(conn, _SEARCH.columns, base, wanted, terms, limit + 1)
    return rows[:limit], queries.write_token(query, rows, limit, len(terms))


def _condition(clause: Clause, of: Sequence[tuple[str, str]], postgres: bool) -> Part:
    if clause.entity != "metric":
        return queries.condition(_SEARCH, clause, postgres)
    told = queries.compare("v.value", clause, postgres)
    sql = f"v.model = r.id AND v.key = ? AND v.is_nan = 0 AND {told.sql}"
    return _measured(Part(sql, (clause.key, *told.values)), of)


def _measured(point: Part, of: Sequence[tuple[str, str]]) -> Part:
    """The condition that there is such a point ``v`` of a metric, on one of these datasets if there are any."""
    sql, values = point.sql, point.values
    if of:
        options = [_dataset("v", name, digest) for name, digest in of]
        sql += f" AND ({' OR '.join(option.sql for option in options)})"
        values += tuple(value for option in options for value in option.values)
    return Part(f"EXISTS (SELECT 1 FROM logged_model_metrics v WHERE {sql})", values)


def _dataset(table: str, name: str, digest: str) -> Part:
    if digest:
        return Part(f"({table}.dataset_name = ? AND {table}.dataset_digest = ?)", (name, digest))
    return Part(f"{table}.dataset_name = ?", (name,))


def _ordering(orders: Sequence[By]) -> tuple[list[Term], list[Part]]:
    terms: list[Term] = []
    joins: list[Part] = []
    seen: set[str] = set()
    for order in orders:
        found: Order = _SEARCH.language.parse_order(order.field)
        if found.entity == "metric":
            name = f"o{len(joins)}"
            joins.append(_metric(order, found.key, name))
            rank = f"CASE WHEN {name}.value IS NULL THEN 1 ELSE 0 END"
            terms += [Term(rank), Term(f"coalesce({name}.value, 0)", not order.ascending)]
        elif found.entity == "attribute":
            seen.add(found.key)
            terms.append(Term(_SEARCH.attributes[found.key].sql, not order.ascending))
        else:
            raise Invalid(f"Invalid order by field name: {order.field}. Only metrics are supported.")
    for key, descending in _SEARCH.ties:
        if key not in seen:
            terms.append(Term(_SEARCH.attributes[key].sql, descending))
    return terms, joins


def _metric(order: By, key: str, name: str) -> Part:
    """The last value of a metric by model, as a table to join."""
    where, values = "m.key = ?", [key]
    if order.dataset_name:
        only = _dataset("m", order.dataset_name, order.dataset_digest)
        where, values = f"{where} AND {only.sql}", [*values, *only.values]
    ranked = (
        "SELECT m.model, CASE WHEN m.is_nan = 1 THEN NULL ELSE m.value END AS value, row_number() OVER"
        " (PARTITION BY m.model ORDER BY m.timestamp_ms DESC, m.step DESC, m.run_id, m.value DESC) AS place"
        f" FROM logged_model_metrics m WHERE {where}"
    )
    return Part(f"LEFT JOIN ({ranked}) {name} ON {name}.model = r.id AND {name}.place = 1", tuple(values))
