"""The schema's history (Alembic). Revisions are named by ascending four-digit numbers."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect
from sqlalchemy import text as sql

HEAD = "0011"
"""The newest revision. Stated here so that opening an up-to-date database need not import Alembic."""


def version(conn: Connection) -> str | None:
    """The revision a database is at; None for an empty one."""
    if not inspect(conn).has_table("alembic_version"):
        return None
    found = conn.execute(sql("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def upgrade(conn: Connection, revision: str = HEAD) -> None:
    """Bring the schema to ``revision`` inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = conn
    command.upgrade(config, revision)


def run(conn: Connection, script: Path) -> None:
    """Run the statements frozen in ``<script>_<dialect>.sql``."""
    text = script.with_name(f"{script.name}_{conn.dialect.name}.sql").read_text(encoding="utf-8")
    for statement in text.split(";\n"):
        if statement.strip():
            conn.exec_driver_sql(statement)
