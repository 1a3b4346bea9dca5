"""The table of legal holds: what must not be deleted, with all it reaches, until it is released."""

from __future__ import annotations

from sqlalchemy import Index, Table, UniqueConstraint

from modelkeep.store.columns import metadata
from modelkeep.store.columns import row_id as _id
from modelkeep.store.columns import text as _text
from modelkeep.store.columns import time as _time

holds = Table(
    "holds",
    metadata,
    _id(),
    _text("kind"),  # run, experiment, model, version, snapshot, trace
    _text(
        "name"
    ),  # a run's id, an experiment's number, a model's name, model@version, a snapshot's digest, a trace's id
    _text("reason", ""),
    _text("actor"),
    _time("since"),
    UniqueConstraint("kind", "name"),
)
Index("ix_holds_name", holds.c.name)
