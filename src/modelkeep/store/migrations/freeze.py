"""For maintainers: print the statements that make today's tables, for a migration to freeze.

Run as ``python -m modelkeep.store.migrations.freeze sqlite TABLE... > .../r0002_sqlite.sql``; without names, all.
"""

from __future__ import annotations

import sys
from collections.abc import Collection

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from modelkeep.store import (  # noqa: F401 - they add to the metadata
    access_tables,
    hold_tables,
    logged_tables,
    tables,
    trace_tables,
    transfer_tables,
    webhook_tables,
)
from modelkeep.store.columns import metadata


def statements(dialect: str, names: Collection[str] = ()) -> str:
    """The DDL of these tables (or all) and their indexes, in an order that satisfies the foreign keys."""
    speaks = {"sqlite": sqlite.dialect, "postgresql": postgresql.dialect}[dialect]()
    made = []
    for table in metadata.sorted_tables:
        if names and table.name not in names:
            continue
        made.append(str(CreateTable(table).compile(dialect=speaks)).strip())
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        made += [str(CreateIndex(index).compile(dialect=speaks)).strip() for index in indexes]
    lines = (line.rstrip() for statement in made for line in f"{statement};".splitlines())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(statements(sys.argv[1], sys.argv[2:]))
