"""Legal holds, and what was copied from elsewhere."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from modelkeep.store.migrations import run

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add their tables."""
    run(op.get_bind(), Path(__file__).with_suffix(""))
