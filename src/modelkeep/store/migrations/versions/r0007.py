"""Indexes behind the searches of versions: the newest of each stage, and the last changed first."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from modelkeep.store.migrations import run

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add them."""
    run(op.get_bind(), Path(__file__).with_suffix(""))
