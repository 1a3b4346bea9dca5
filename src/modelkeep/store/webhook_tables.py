"""Tables of webhooks: who is told of which changes, and how far each has been told.

What a webhook is told comes from the history of events, so one number is its whole queue.
"""

from __future__ import annotations

from sqlalchemy import Table

from modelkeep.store.columns import metadata, number, row_id, text, time

webhooks = Table(
    "webhooks",
    metadata,
    row_id(),
    text("name"),
    text("description", ""),
    text("url"),
    text("secret", ""),  # signs what is sent, so it cannot be kept as a hash; no answer ever holds it
    text("status", "ACTIVE"),
    text("events"),  # canonical JSON: ["model_version.created", ...]
    number("created_ms"),
    number("updated_ms"),
    number("seen"),  # the last event that is dealt with
    number("attempts", 0),  # at the next one
    time("not_before", nullable=True),
    text("last_error", ""),
)
