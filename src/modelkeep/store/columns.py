"""The columns tables are made of, and the metadata that gathers the tables."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Integer, MetaData, Table, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER PRIMARY KEY is SQLite's row id


def row_id() -> Column[Any]:
    """``id``: the number a row gets when it is added."""
    return Column("id", Id, primary_key=True, autoincrement=True)


def text(name: str, default: str | None = None, **options: Any) -> Column[Any]:
    """Text that is never NULL."""
    if default is not None:
        options["server_default"] = default
    return Column(name, Text, nullable=False, **options)


def number(name: str, default: int | None = None, kind: Any = BigInteger, **options: Any) -> Column[Any]:
    """A whole number that is never NULL."""
    if default is not None:
        options["server_default"] = str(default)
    return Column(name, kind, nullable=False, **options)


def time(name: str, *, nullable: bool = False) -> Column[Any]:
    """Seconds since 1970 UTC."""
    return Column(name, Double, nullable=nullable)


def of(table: str, name: str, **options: Any) -> Column[Any]:
    """A column that refers to ``table.id`` and goes when that row goes."""
    return Column(name, Id, ForeignKey(f"{table}.id", ondelete="CASCADE"), nullable=False, **options)


def values(name: str, owner: str, column: str, *extra: Any, **options: Any) -> Table:
    """Text values by key of one owner: params and tags."""
    return Table(
        name,
        metadata,
        of(owner, column, primary_key=True),
        text("key", primary_key=True),
        text("value"),
        *extra,
        sqlite_with_rowid=False,
        **options,
    )
