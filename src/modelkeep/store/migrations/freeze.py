"""For maintainers: print the statements that make today's tables, for a migration to freeze.

Run as ``python -m modelkeep.store.migrations.freeze sqlite > .../r0001_sqlite.sql``.
"""

from __future__ import annotations

import sys

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from modelkeep.store.tables import metadata


def statements(dialect: str) -> str:
    """The DDL of every table and index, in an order that satisfies the foreign keys."""
    speaks = {"sqlite": sqlite.dialect, "postgresql": postgresql.dialect}[dialect]()
    made = []
    for table in metadata.sorted_tables:
        made.append(str(CreateTable(table).compile(dialect=speaks)).strip())
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        made += [str(CreateIndex(index).compile(dialect=speaks)).strip() for index in indexes]
    lines = (line.rstrip() for statement in made for line in f"{statement};".splitlines())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(statements(sys.argv[1]))
