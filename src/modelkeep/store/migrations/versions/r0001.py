"""The first schema. Its statements are frozen beside this file, one file per dialect."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from modelkeep.store.migrations import run

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create everything."""
    run(op.get_bind(), Path(__file__).with_suffix(""))
