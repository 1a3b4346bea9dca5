"""Searches keep their journals here."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from modelkeep.store.migrations import run

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add their table."""
    run(op.get_bind(), Path(__file__).with_suffix(""))
