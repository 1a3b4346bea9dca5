"""Versions know whose files they have: holds and gc reach those of one that was registered without a run."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from modelkeep.store.migrations import run

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the column, filled from the sources, and its index."""
    run(op.get_bind(), Path(__file__).with_suffix(""))
