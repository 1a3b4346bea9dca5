"""Datasets of runs, and logged models: what MLflow 3 tracks."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from modelkeep.store.migrations import run

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add their tables, and the logged model of a version."""
    run(op.get_bind(), Path(__file__).with_suffix(""))
