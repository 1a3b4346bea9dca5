"""Alembic's entry: run the revisions in the transaction of the connection that was handed over."""

from __future__ import annotations

from alembic import context

from modelkeep.store import (  # noqa: F401 - they add to the metadata
    access_tables,
    hold_tables,
    logged_tables,
    tables,
    trace_tables,
    transfer_tables,
    webhook_tables,
)
from modelkeep.store.columns import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # true of SQLite too, since the driver's own transactions are off
)
context.run_migrations()
