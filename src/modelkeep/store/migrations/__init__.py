"""The schema's history (Alembic). Revisions are named by ascending four-digit numbers."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect
from sqlalchemy import text as sql

HEAD = "0012"
"""The newest revision. Stated here so that opening an up-to-date database need not import Alembic."""


def version(conn: Connection) -> str | None:
    """The revision a database is at; None for an empty one."""
    if not inspect(conn).has_table("alembic_version"):
        return None
    found = conn.execute(sql("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def upgrade(conn: Connection, revision: str = HEAD) -> None:
    """Bring the schema to ``revision`` inside the caller's transaction."""
    if version(conn) is None:
        _create(conn, revision)
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = conn
    command.upgrade(config, revision)


def _create(conn: Connection, revision: str) -> None:
    """Run every script up to ``revision`` on an empty database, as Alembic would, without half a second of it."""
    for script in sorted((Path(__file__).parent / "versions").glob("r*.py")):
        if script.stem[1:] <= revision:
            run(conn, script.with_suffix(""))
    key = "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)"
    conn.execute(sql(f"CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, {key})"))
    conn.execute(sql("INSERT INTO alembic_version VALUES (:number)"), {"number": revision})


def run(conn: Connection, script: Path) -> None:
    """Run the statements frozen in ``<script>_<dialect>.sql``."""
    text = script.with_name(f"{script.name}_{conn.dialect.name}.sql").read_text(encoding="utf-8")
    for statement in text.split(";\n"):
        if statement.strip():
            conn.exec_driver_sql(statement)
