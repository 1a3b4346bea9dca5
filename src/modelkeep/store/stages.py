"""The stage cache: what a stage of ``apply`` produced, by the digest of everything that went into it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, select

from modelkeep.store.bulk import decode, encode, inserting
from modelkeep.store.tables import stages


def remember(conn: Connection, key: str, stage: str, model: str, result: dict[str, Any], now: float) -> None:
    """Keep the result of a stage; a later result for the same key replaces it.

    Args:
        key: Digest of the stage's declaration, inputs and code.
        stage: Its name, as ``train``.
        result: JSON types; large things as digests of blobs.
    """
    insert = inserting(conn, stages)
    row = {"key": key, "stage": stage, "model": model, "result": encode(result), "created": now}
    conn.execute(insert.on_conflict_do_update(index_elements=["key"], set_=row), row)


def recall(conn: Connection, key: str) -> dict[str, Any] | None:
    """What ``remember`` kept, or None."""
    found = conn.execute(select(stages.c.result).where(stages.c.key == key)).scalar()
    return None if found is None else decode(found)


def latest(conn: Connection, model: str, stage: str) -> tuple[str, dict[str, Any]] | None:
    """Key and result of the stage that ran last for a model: what ``plan`` compares with."""
    query = select(stages.c.key, stages.c.result).where(stages.c.model == model, stages.c.stage == stage)
    found = conn.execute(query.order_by(stages.c.created.desc()).limit(1)).first()
    return None if found is None else (found.key, decode(found.result))


def forget(conn: Connection, key: str) -> None:
    """Drop one result, so that its stage runs again."""
    conn.execute(delete(stages).where(stages.c.key == key))
