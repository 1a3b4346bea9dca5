"""Jobs have a priority, and say what they keep busy."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from modelkeep.store.migrations import run

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add both columns."""
    run(op.get_bind(), Path(__file__).with_suffix(""))
