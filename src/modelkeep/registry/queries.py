"""Searches as SQL: clauses become conditions, order keys become terms, pages continue after the last row's terms.

A page token holds the values of the last row's terms (keyset paging), so pages neither skip nor repeat rows while
others are added, and the hundredth page costs what the first one does.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid
from modelkeep.registry import access_places
from modelkeep.registry.filters import Clause, Language, Order
from modelkeep.store.bulk import fetch_rows


class Part(Struct, frozen=True):
    """A piece of SQL with ``?`` for each of its parameters."""

    sql: str
    values: tuple[Any, ...] = ()


class Term(Struct, frozen=True):
    """One expression rows are ordered by; never NULL."""

    sql: str
    descending: bool = False


class Attribute(Struct, frozen=True):
    """A column of the rows searched; ``whole`` when filters give its whole numbers as text."""

    sql: str
    nullable: bool = False
    whole: bool = False


class Values(Struct, frozen=True):
    """A table of values by key.

    Attributes:
        table: Its name.
        owner: Its column with the number of the row it belongs to.
        column: Its column with the value.
        match: SQL of the row's number, and of what else must be equal; the table is called ``v`` in it.
    """

    table: str
    owner: str
    column: str = "value"
    match: str = "r.id"


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        language: What filters may say.
        base: ``FROM`` of the rows, one of them named ``r``.
        columns: What each row gives.
        attributes: SQL by attribute.
        values: Tables by entity.
        ties: Attributes that make every order total, with whether they descend.
        kind: What is searched, as grants call it, when a row is shown only to those who may read that thing.
        name: SQL of a row's name or number there.
    """

    language: Language
    base: str
    columns: str
    attributes: Mapping[str, Attribute]
    values: Mapping[str, Values] = field(default_factory=dict)
    ties: Sequence[tuple[str, bool]] = (("id", False),)
    kind: str = ""
    name: str = ""


def shown(search: Search) -> list[Part]:
    """The condition that a row may be seen by whoever searches; none when all may be."""
    names = access_places.seen(search.kind) if search.kind else None
    if names is None:
        return []
    among: list[Any] = sorted(names) if search.kind == "model" else sorted(int(name) for name in names)
    return [Part(f"{search.name} IN ({', '.join('?' * len(among)) or 'NULL'})", tuple(among))]


def condition(search: Search, clause: Clause, postgres: bool) -> Part:
    """A clause as a condition on a row ``r``."""
    if clause.entity == "attribute":
        column = search.attributes[clause.key]
        return compare(column.sql, _whole(clause) if column.whole else clause, postgres)
    table = search.values[clause.entity]
    mine = f"v.{table.owner} = {table.match} AND v.key = ?"
    if clause.op == "IS NULL":
        return Part(f"NOT EXISTS (SELECT 1 FROM {table.table} v WHERE {mine})", (clause.key,))
    if clause.op == "IS NOT NULL":
        return Part(f"EXISTS (SELECT 1 FROM {table.table} v WHERE {mine})", (clause.key,))
    told = compare(f"v.{table.column}", clause, postgres)
    if clause.entity == "metric" and clause.op == "!=":  # NULL is NaN, which is not equal to any number
        told = Part(f"(v.{table.column} IS NULL OR {told.sql})", told.values)
    return Part(f"EXISTS (SELECT 1 FROM {table.table} v WHERE {mine} AND {told.sql})", (clause.key, *told.values))


def compare(column: str, clause: Clause, postgres: bool) -> Part:
    """A clause's comparison of a column. LIKE minds case on both databases, ILIKE does not."""
    if clause.op in ("IN", "NOT IN"):
        return Part(f"{column} {clause.op} ({', '.join('?' * len(clause.value))})", tuple(clause.value))
    if clause.op == "LIKE" and not postgres:  # SQLite's LIKE ignores case; GLOB does not
        return Part(f"{column} GLOB ?", (_glob(clause.value),))
    if clause.op == "ILIKE" and not postgres:
        return Part(f"lower({column}) LIKE ?", (clause.value.lower(),))
    if clause.op in ("LIKE", "ILIKE"):
        return Part(f"{column} {clause.op} ? ESCAPE ''", (clause.value,))
    if clause.op == "RLIKE":  # SQLite calls a function the search must have given it
        return Part(f"{column} {'~' if postgres else 'REGEXP'} ?", (clause.value,))
    return Part(f"{column} {clause.op} ?", (clause.value,))


def _whole(clause: Clause) -> Clause:
    texts = clause.value if isinstance(clause.value, tuple) else (clause.value,)
    if clause.op not in ("=", "!=", "IN", "NOT IN"):
        raise Invalid(f"Invalid comparator for {clause.key}: {clause.op}")
    if not all(text.isascii() and text.isdecimal() and len(text) < 19 for text in texts):
        raise Invalid(f"Invalid {clause.key} {clause.value!r}: expected a whole number in quotes")
    numbers = tuple(int(text) for text in texts)
    return Clause(clause.entity, clause.key, clause.op, numbers if isinstance(clause.value, tuple) else numbers[0])


def _glob(pattern: str) -> str:
    special = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
    return "".join(special.get(letter, letter) for letter in pattern)


def ordering(search: Search, orders: Sequence[Order]) -> tuple[list[Term], list[Part]]:
    """The terms of an order, and the joins they need. Missing values come last either way, after NaN."""
    terms: list[Term] = []
    joins: list[Part] = []
    seen: set[tuple[str, str]] = set()
    for order in orders:
        if (order.entity, order.key) in seen:
            raise Invalid(f"`order_by` contains duplicate fields: {order.entity} '{order.key}'")
        seen.add((order.entity, order.key))
        if order.entity == "attribute":
            terms += _by_attribute(search.attributes[order.key], not order.ascending)
        elif order.entity in search.values:
            name = f"o{len(joins)}"
            table = search.values[order.entity]
            mine = f"v.{table.owner} = {table.match} AND v.key = ?".replace("v.", f"{name}.")
            joins.append(Part(f"LEFT JOIN {table.table} {name} ON {mine}", (order.key,)))
            terms += by_value(order, name, table)
        else:
            raise Invalid(f"Invalid order_by: {order.entity} values have no order")
    for key, descending in search.ties:
        if ("attribute", key) not in seen:
            terms.append(Term(search.attributes[key].sql, descending))
    return terms, joins


def by_value(order: Order, name: str, table: Values) -> list[Term]:
    """The terms of ordering by a joined table of values."""
    value, nothing = f"{name}.{table.column}", "0" if order.entity == "metric" else "''"
    rank = f"CASE WHEN {name}.key IS NULL THEN 2 WHEN {value} IS NULL THEN 1 ELSE 0 END"
    return [Term(rank), Term(f"coalesce({value}, {nothing})", not order.ascending)]


def _by_attribute(attribute: Attribute, descending: bool) -> list[Term]:
    if not attribute.nullable:
        return [Term(attribute.sql, descending)]
    rank = f"CASE WHEN {attribute.sql} IS NULL THEN 1 ELSE 0 END"
    return [Term(rank), Term(f"coalesce({attribute.sql}, 0)", descending)]


def after(terms: Sequence[Term], last: Sequence[Any]) -> Part:
    """The condition of rows that come after one with these values of the terms."""
    sql, values = "", tuple[Any, ...]()
    for term, value in zip(reversed(terms), reversed(last), strict=True):
        beyond = "<" if term.descending else ">"
        if not sql:
            sql, values = f"{term.sql} {beyond} ?", (value,)
        else:  # the first half alone would do; it lets the database use an index
            sql = f"({term.sql} {beyond}= ? AND ({term.sql} {beyond} ? OR {sql}))"
            values = (value, value, *values)
    return Part(sql, values)


def select(
    conn: Connection,
    what: str,
    base: Part,
    conditions: Sequence[Part],
    terms: Sequence[Term],
    limit: int,
    groups: Sequence[Part] = (),
) -> list[Any]:
    """Rows in order: ``what``, then the values of the terms.

    Args:
        groups: Conditions that exclude each other, one of which rows must meet. The first rows of each are read by
            themselves, so that an index that holds each group in order is enough.
    """
    listed = ", ".join(f"{term.sql} AS t{at}" for at, term in enumerate(terms))
    ordered = ", ".join(f"{term.sql} DESC" if term.descending else term.sql for term in terms)
    parts, values = [], list[Any]()
    for at, group in enumerate(groups or [Part("1 = 1")]):
        where = " AND ".join(part.sql for part in (group, *conditions))
        one = f"SELECT {what}, {listed} FROM {base.sql} WHERE {where} ORDER BY {ordered} LIMIT ?"
        parts.append(f"SELECT * FROM ({one}) g{at}" if len(groups) > 1 else one)
        values += [*base.values, *group.values, *(value for part in conditions for value in part.values), limit]
    if len(parts) == 1:
        return fetch_rows(conn, parts[0], values)
    again = ", ".join(f"t{at} DESC" if term.descending else f"t{at}" for at, term in enumerate(terms))
    return fetch_rows(conn, f"{' UNION ALL '.join(parts)} ORDER BY {again} LIMIT ?", [*values, limit])


def find(
    conn: Connection,
    search: Search,
    *,
    text: str,
    orders: Sequence[str],
    limit: int,
    token: str,
    conditions: Sequence[Part] = (),
    sign: Any = (),
    default: Sequence[Order] = (),
    apart: Callable[[Clause], bool] | None = None,
) -> tuple[list[Any], str]:
    """A page of rows, and the token of the next one (empty at the end).

    Args:
        text: A filter.
        orders: Keys as people write them.
        conditions: What else rows must meet.
        sign: What else makes this query another than one its token is from.
        default: The order when none is given.
        apart: Which clauses ``conditions`` stand for already.

    Raises:
        Invalid: The filter, the order or the token makes no sense.
    """
    postgres = conn.dialect.name == "postgresql"
    clauses = [clause for clause in search.language.parse(text) if apart is None or not apart(clause)]
    keys = [search.language.parse_order(key) for key in orders] or list(default)
    terms, joins = ordering(search, keys)
    query = signature(text, orders, sign)
    wanted = [*conditions, *(condition(search, clause, postgres) for clause in clauses)]
    last = read_token(token, query, len(terms))
    if last is not None:
        wanted.append(after(terms, last))
    base = Part(
        " ".join([search.base, *(join.sql for join in joins)]), tuple(v for join in joins for v in join.values)
    )
    found = select(conn, search.columns, base, [*wanted, *shown(search)], terms, limit + 1)
    return found[:limit], write_token(query, found, limit, len(terms))


def signature(*parts: Any) -> str:
    """What a page token must be from: the same query."""
    return hashlib.blake2b(json.dumps(parts, default=str).encode("utf-8", "replace"), digest_size=6).hexdigest()


def write_token(query: str, found: Sequence[Any], limit: int, terms: int) -> str:
    """The token of the page after ``found[:limit]``; empty when there is none."""
    if len(found) <= limit:
        return ""
    last = list(found[limit - 1])[-terms:]
    return base64.urlsafe_b64encode(json.dumps([query, *last]).encode()).decode()


def read_token(token: str, query: str, terms: int) -> list[Any] | None:
    """The last row's values a token holds; None without a token. Raises ``Invalid``."""
    if not token:
        return None
    try:
        said = json.loads(base64.urlsafe_b64decode(token.encode("ascii")))
    except (ValueError, RecursionError):
        raise Invalid("Invalid page token, could not base64-decode") from None
    scalar = isinstance(said, list) and all(isinstance(value, str | int | float) for value in said)
    if not scalar or len(said) != terms + 1 or said[0] != query:
        raise Invalid("Invalid page token: it belongs to another search")
    return list(said[1:])
