"""The first schema. Its statements are frozen beside this file, one file per dialect."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create everything."""
    conn = op.get_bind()
    script = Path(__file__).with_name(f"r0001_{conn.dialect.name}.sql").read_text(encoding="utf-8")
    for statement in script.split(";\n"):
        if statement.strip():
            conn.exec_driver_sql(statement)
