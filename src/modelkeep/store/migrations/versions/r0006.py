"""Webhooks: who is told of which changes of the registry."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from modelkeep.store.migrations import run

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add their table."""
    run(op.get_bind(), Path(__file__).with_suffix(""))
