"""Many rows at once, at the driver's speed, on both databases."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, cast

import msgspec
from sqlalchemy import Connection, Double, Integer, Table

_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder()
_NUMBERS = (Integer, Double)

Query = tuple[str, Sequence[Any]]
"""A statement written with ``?``, and its values."""

_SIZES = (250, 125, 64, 32, 16)
"""Rows of one INSERT, and fewer at the end: few statements, all of them soon prepared. At most 32,766 values."""


def encode(value: Any) -> str:
    """Canonical JSON text: keys in order, no spaces. NaN and infinities become null."""
    return _ENCODER.encode(value).decode()


def decode(text: str) -> Any:
    """What ``encode`` wrote."""
    return _DECODER.decode(text)


def fetch(conn: Connection, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Rows of a query written with ``?``, from the driver itself.

    Raises:
        Exception: The driver's own errors; ``Database`` translates them.
    """
    driver: Any = conn.connection.driver_connection
    found = driver.execute(_spoken(sql, conn.dialect.name == "postgresql"), values).fetchall()
    return cast("list[tuple[Any, ...]]", found)


def fetch_each(conn: Connection, queries: Sequence[Query]) -> list[list[tuple[Any, ...]]]:
    """The rows of each of these queries: PostgreSQL is asked all of them at once, and waited for once."""
    if conn.dialect.name != "postgresql":
        return [fetch(conn, *query) for query in queries]
    driver: Any = conn.connection.driver_connection
    with driver.pipeline():
        asked = [driver.execute(_spoken(sql, postgres=True), values) for sql, values in queries]
        return [cursor.fetchall() for cursor in asked]


def fetch_rows(conn: Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """Like ``fetch``, with the columns of each row as its attributes."""
    driver: Any = conn.connection.driver_connection
    found = driver.execute(_spoken(sql, conn.dialect.name == "postgresql"), values)
    return list(map(_row(tuple(column[0] for column in found.description)), found.fetchall()))


@lru_cache(maxsize=256)
def _row(columns: tuple[str, ...]) -> Callable[[Iterable[Any]], Any]:
    make: Any = namedtuple  # its fields are known only now
    return cast("Callable[[Iterable[Any]], Any]", make("row", columns, rename=True)._make)


def run_many(conn: Connection, sql: str, rows: Sequence[Sequence[Any]]) -> None:
    """Run one statement written with ``?`` for each row of values."""
    driver: Any = conn.connection.driver_connection
    if conn.dialect.name == "postgresql":
        with driver.cursor() as cursor:
            cursor.executemany(_spoken(sql, postgres=True), rows)
    else:
        driver.executemany(sql, rows)


@lru_cache(maxsize=512)
def _spoken(sql: str, postgres: bool) -> str:
    return sql.replace("%", "%%").replace("?", "%s") if postgres else sql


def insert_rows(
    conn: Connection, table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], conflict: str = ""
) -> None:
    """Insert rows with one statement's overhead.

    PostgreSQL takes each column as one array (``unnest``). SQLite takes many rows in one statement: its driver
    lets other threads run once per statement, and taking the turn back costs more than a row does.

    Args:
        columns: Names, in the order of each row's values.
        conflict: What follows the values, as ``ON CONFLICT DO NOTHING``. No two rows may meet the same
            conflict when it updates.
    """
    if not rows:
        return
    driver: Any = conn.connection.driver_connection
    names = tuple(columns)
    if conn.dialect.name == "postgresql":
        kinds = (table.c[name].type for name in names)
        columns_of = zip(kinds, zip(*rows, strict=True), strict=True)
        values = tuple(
            number_array(column) if isinstance(kind, _NUMBERS) else list(column) for kind, column in columns_of
        )
        driver.execute(_unnest(table, names, conflict), values)
        return
    at = 0
    while (left := len(rows) - at) > 0:
        size = left if left <= _SIZES[-1] else next(size for size in _SIZES if size <= left)
        some = rows[at : at + size]
        driver.execute(_values(table, names, conflict, size), list(chain.from_iterable(some)))
        at += size


@lru_cache(maxsize=256)
def _values(table: Table, columns: tuple[str, ...], conflict: str, rows: int) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    marks = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table.name} ({names}) VALUES {', '.join([marks] * rows)} {conflict}"


@lru_cache(maxsize=256)
def _unnest(table: Table, columns: tuple[str, ...], conflict: str) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    from sqlalchemy.dialects import postgresql  # late: it is large

    speaks: Any = postgresql.dialect
    kinds = (str(table.c[name].type.compile(speaks())) for name in columns)
    arrays = ", ".join(f"%s::{kind}[]" for kind in kinds)
    return f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays}) {conflict}"


def inserting(conn: Connection, table: Table) -> Any:
    """An INSERT of the connection's dialect, to which can be said what happens on a conflict."""
    if conn.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql  # late: it is large

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


def select_in(
    conn: Connection,
    columns: str,
    table: Table,
    key: str,
    values: Iterable[Any],
    same: Mapping[str, Any] | None = None,
) -> list[tuple[Any, ...]]:
    """Rows whose column ``key`` is one of ``values``, however many: they travel as one parameter.

    Args:
        same: What else a row's columns must be.
    """
    wanted = list(values)
    return fetch(conn, *selecting(conn, columns, table, key, wanted, same)) if wanted else []


def selecting(
    conn: Connection,
    columns: str,
    table: Table,
    key: str,
    wanted: Sequence[Any],
    same: Mapping[str, Any] | None = None,
) -> Query:
    """The query of ``select_in``, for ``fetch_each``; of at least one value."""
    also, rest = "", ()
    if same:
        also, rest = "".join(f'"{name}" = ? AND ' for name in same), tuple(same.values())
    query = f'SELECT {columns} FROM {table.name} WHERE {also}"{key}" '
    if len(wanted) == 1:
        return f"{query}= ?", (*rest, *wanted)
    if conn.dialect.name == "postgresql":
        if all([type(value) is int for value in wanted]):  # noqa: C419 - a list is twice as fast
            return f"{query}= ANY(?::bigint[])", (*rest, number_array(wanted))
        return f"{query}= ANY(?)", (*rest, list(wanted))
    return f"{query}IN (SELECT value FROM json_each(?))", (*rest, encode(wanted))


def number_array(values: Sequence[Any]) -> str:
    """Numbers as the text of a PostgreSQL array: the driver takes ten times as long for a list of them."""
    texts = ["NULL" if value is None else str(value) for value in values] if None in values else map(str, values)
    return f"{{{','.join(texts)}}}"
