"""Who may ask for what: users, their roles, and the tokens that stand for them.

Nothing in these tables lets its reader in: passwords are argon2id hashes, tokens are kept as digests.
Units are those of ``tables``: times are seconds since 1970 UTC as doubles.
"""

from __future__ import annotations

from sqlalchemy import Column as _Column
from sqlalchemy import Double, Index, Table

from modelkeep.store.columns import metadata
from modelkeep.store.columns import of as _of
from modelkeep.store.columns import row_id as _id
from modelkeep.store.columns import text as _text
from modelkeep.store.columns import time as _time

users = Table(
    "users",
    metadata,
    _id(),
    _text("name", unique=True),
    _text("password", ""),  # PHC string; empty: no password opens this account, only its tokens do
    _time("created"),
)

grants = Table(
    "grants",
    metadata,
    _of("users", "user_id", primary_key=True),
    _text("role", primary_key=True),
    _text("kind", primary_key=True),  # everything, experiment, model, endpoint
    _text("name", primary_key=True),  # an experiment's number, a model's or endpoint's name; * for all of the kind
    sqlite_with_rowid=False,
)

access_tokens = Table(
    "access_tokens",
    metadata,
    _id(),
    _text("key", unique=True),  # the public half
    _of("users", "user_id"),
    _text("name"),
    _text("kind"),  # token, session
    _text("digest"),  # BLAKE3 of the secret half
    _text("scopes", "[]"),  # JSON list; empty: all that its user may
    _Column("rate", Double, nullable=False, server_default="0"),  # requests a second; 0: no limit of its own
    _time("created"),
    _time("expires", nullable=True),
)
Index("ix_access_tokens_user_id", access_tokens.c.user_id)
