"""Taking in what serving captured: spool files become Parquet blobs and capture rows, each exactly once.

A spool file's name is its identity. A kill between any two steps leaves the file there or its row there; the next
pass then repeats what is missing and changes nothing that is done.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection

from modelkeep.core.errors import Damaged
from modelkeep.core.ports import BlobStore
from modelkeep.registry import captures
from modelkeep.registry.captures import Capture
from modelkeep.store.database import Database

log = logging.getLogger(__name__)

ABOUT = b"modelkeep"
"""Key of the schema metadata that says what a spool file holds."""
BAD = ".bad"


def take_in(folder: Path, db: Database, blobs: BlobStore) -> list[Capture]:
    """Take in every whole spool file.

    A file that cannot be read is renamed to ``*.bad`` and told in the log; it is never taken for an empty one.

    Args:
        folder: Where serving writes; need not exist.

    Returns:
        What was new, oldest first.

    Raises:
        Unavailable: The database or the disk is away; the files stay where they are.
    """
    files = sorted(folder.glob("*.arrow")) if folder.is_dir() else []
    found: list[tuple[Path, Capture]] = []
    for path in files:
        try:
            found.append((path, _kept(path, blobs)))
        except Damaged as error:
            log.error("%s: %s", path.name, error)
            path.rename(path.with_suffix(BAD))
    if not found:
        return []

    def record(conn: Connection) -> list[Capture]:
        return [capture for _, capture in found if captures.add(conn, capture)]

    new = db.write(record)
    for path, _ in found:
        path.unlink(missing_ok=True)
    return new


def rows_of(blobs: BlobStore, capture: Capture, columns: list[str] | None = None) -> pa.Table:
    """The captured rows of one part; columns that it does not have are left out."""
    with blobs.open(capture.digest) as stream:
        file = pq.ParquetFile(pa.BufferReader(stream.read()))
    known = file.schema_arrow.names
    return file.read(columns=None if columns is None else [name for name in columns if name in known])


def _kept(path: Path, blobs: BlobStore) -> Capture:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            table = reader.read_all()
        about = json.loads((table.schema.metadata or {})[ABOUT])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise Damaged(f"is not a whole spool file: {error}") from error
    digest = ""
    if table.num_rows:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=1)
        digest = blobs.put(sink.getvalue().to_pybytes())
    return Capture(
        endpoint=about["endpoint"],
        version=int(about["version"]),
        mode=about["mode"],
        start=float(about["start"]),
        end=float(about["end"]),
        rows=table.num_rows,
        errors=int(about["errors"]),
        dropped=int(about["dropped"]),
        digest=digest,
        part=path.name,
    )
