"""What was copied from elsewhere: so that a repeated import copies only what is new or changed."""

from __future__ import annotations

from sqlalchemy import Table

from modelkeep.store.columns import metadata
from modelkeep.store.columns import text as _text

imports = Table(
    "imports",
    metadata,
    _text("origin", primary_key=True),  # the source: its address without passwords
    _text("kind", primary_key=True),  # experiment, run, logged_model, model, version
    _text("name", primary_key=True),  # its id or name there
    _text("target"),  # its id or name here
    _text("fingerprint", ""),  # digest of what it held when it had been copied whole; empty while it is not
    sqlite_with_rowid=False,
)
