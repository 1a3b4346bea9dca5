"""A copy of a version that ``apply`` made knows its package, whatever becomes of the original."""

from __future__ import annotations

from pathlib import Path

from alembic import op

from modelkeep.store.migrations import run

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Fill the column of copies, and index packages."""
    run(op.get_bind(), Path(__file__).with_suffix(""))
