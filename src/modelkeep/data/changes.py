"""What a source holds that its newest snapshot does not: told from fingerprints, without reading a row.

Apart from ``snapshots`` so that a plan, which asks only this, need not import what reads and profiles tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from modelkeep.data.files import Listing, is_local
from modelkeep.registry import snapshots as registry
from modelkeep.spec.declaration import Data
from modelkeep.store.database import Database

APPENDED = "appended"
"""Fingerprint of parts that were appended by hand: they belong to no partition of the source and stay."""


_NUMBER = re.compile(r"::\d+$")


def numbered(partition: str, count: int) -> str:
    """The name of a partition's part, from 0: the first is called like the partition."""
    return f"{partition}::{count + 1}" if count else partition


def partition_of(part: str) -> str:
    """The partition of the source that a part was made from."""
    return _NUMBER.sub("", part)


def changed(db: Database, data: Data, name: str, base: Path) -> list[str]:
    """Partitions that taking a snapshot would read or drop; empty when nothing changed.

    Args:
        db: Where takings are recorded.
        data: Names the source.
        name: What snapshots of it are taken as, usually the model's name.
        base: The declaration's folder.

    Raises:
        NotFound: There is no such file.
    """
    prints = _fingerprint(data, base)
    with db.read() as conn:
        record = registry.latest(conn, name)
    known = {} if record is None else record.fingerprints
    fresh = [part for part, stamp in prints.items() if part not in known or known[part].fingerprint != stamp]
    gone = [
        part for part, held in known.items() if partition_of(part) not in prints and held.fingerprint != APPENDED
    ]
    return fresh + gone


def _fingerprint(data: Data, base: Path) -> Mapping[str, str]:
    if isinstance(data.source, str) and is_local(data.source):
        return Listing(data.source, base).fingerprint()
    from modelkeep.data.sources import open_source  # Arrow, pandas: half a plan's time, in vain for local files

    return open_source(data, base).fingerprint()
