"""Many rows at once, at the driver's speed, on both databases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql

_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder()


def encode(value: Any) -> str:
    """Canonical JSON text: keys in order, no spaces. NaN and infinities become null."""
    return _ENCODER.encode(value).decode()


def decode(text: str) -> Any:
    """What ``encode`` wrote."""
    return _DECODER.decode(text)


def insert_rows(
    conn: Connection, table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], conflict: str = ""
) -> None:
    """Insert rows with one statement's overhead.

    PostgreSQL takes each column as one array (``unnest``); SQLite runs one prepared statement over the rows.

    Args:
        columns: Names, in the order of each row's values.
        conflict: What follows the values, as ``ON CONFLICT DO NOTHING``. No two rows may meet the same
            conflict when it updates.
    """
    if not rows:
        return
    postgres = conn.dialect.name == "postgresql"
    statement = _insert(table, tuple(columns), conflict, postgres)
    if postgres:
        conn.exec_driver_sql(statement, tuple(list(column) for column in zip(*rows, strict=True)))
    else:
        conn.exec_driver_sql(statement, list(rows))


@lru_cache(maxsize=256)
def _insert(table: Table, columns: tuple[str, ...], conflict: str, postgres: bool) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    if not postgres:
        return f"INSERT INTO {table.name} ({names}) VALUES ({', '.join('?' * len(columns))}) {conflict}"
    speaks: Any = postgresql.dialect
    kinds = (str(table.c[name].type.compile(speaks())) for name in columns)
    arrays = ", ".join(f"%s::{kind}[]" for kind in kinds)
    return f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays}) {conflict}"


def select_in(
    conn: Connection, columns: str, table: Table, key: str, values: Iterable[Any]
) -> list[tuple[Any, ...]]:
    """Rows whose text column ``key`` is one of ``values``, however many: they travel as one parameter."""
    wanted = list(values)
    if not wanted:
        return []
    if conn.dialect.name == "postgresql":
        found = conn.exec_driver_sql(f'SELECT {columns} FROM {table.name} WHERE "{key}" = ANY(%s)', (wanted,))
    else:
        inner = "SELECT value FROM json_each(?)"
        found = conn.exec_driver_sql(
            f'SELECT {columns} FROM {table.name} WHERE "{key}" IN ({inner})', (encode(wanted),)
        )
    return [tuple(row) for row in found]
