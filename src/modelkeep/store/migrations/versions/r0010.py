"""Metrics, params and tags know when their run started: searches find the newest matching runs by their index."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from modelkeep.store.migrations import run

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add and fill the columns; make the indexes anew."""
    run(op.get_bind(), Path(__file__).with_suffix(""))
