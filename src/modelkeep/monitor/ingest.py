"""Taking captured predictions in: from spool files to Parquet blobs and rows of the registry, each exactly once.

A file is read, kept as a blob, recorded, and only then deleted. The file's name is unique in the registry, so a
kill at any point means at worst that the same file is offered again and found to be recorded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec.structs import replace
from sqlalchemy import Connection

from modelkeep.core.ports import BlobStore
from modelkeep.registry import captures, findings
from modelkeep.registry.captures import Capture
from modelkeep.store.database import Database

log = logging.getLogger(__name__)

LATE = "late"
"""Mark in a closed window's metrics: rows came in after it was closed."""


def take_in(folder: Path, db: Database, blobs: BlobStore, *, limit: int = 200) -> list[Capture]:
    """Take in the spool files of a folder, oldest first.

    A file that cannot be read is renamed to ``*.damaged`` and told in the log; its rows were never acknowledged.

    Args:
        limit: At most so many files in one call, recorded in one transaction.

    Returns:
        What was recorded now.

    Raises:
        Unavailable: The disk or the database is full or away; the files stay for the next call.
    """
    files = sorted(folder.glob("*.arrow"), key=lambda path: (path.stat().st_mtime_ns, path.name))[:limit]
    read = [(path, found) for path in files if (found := _read(path)) is not None]
    if not read:
        return []
    kept = [replace(capture, digest=_keep(blobs, table) if table.num_rows else "") for _, (capture, table) in read]

    def record(conn: Connection) -> list[Capture]:
        fresh = [capture for capture in kept if captures.add(conn, capture)]
        for capture in fresh:
            _mark_late(conn, capture)
        return fresh

    recorded = db.write(record)
    for path, _ in read:
        path.unlink(missing_ok=True)
    return recorded


def rows_of(blobs: BlobStore, capture: Capture, columns: Sequence[str] | None = None) -> pa.Table:
    """The captured rows of a part, or some of their columns; those it does not have are left out.

    Raises:
        Damaged: The stored bytes are not what was kept.
    """
    with blobs.open(capture.digest) as stream:
        file = pq.ParquetFile(pa.BufferReader(stream.read()))
    names = set(file.schema_arrow.names)
    return file.read(None if columns is None else [name for name in columns if name in names])


def _read(path: Path) -> tuple[Capture, pa.Table] | None:
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            about: dict[str, Any] = json.loads(table.schema.metadata[b"modelkeep"])
            return _capture(path, about, table.num_rows), table
    except FileNotFoundError:
        return None  # another process took it in
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        log.error("%s is not a capture file and is set aside: %s", path.name, error)
        path.replace(path.with_suffix(".damaged"))
        return None


def _capture(path: Path, about: dict[str, Any], rows: int) -> Capture:
    return Capture(
        endpoint=about["endpoint"],
        version=int(about["version"]),
        mode=about["mode"],
        start=float(about["start"]),
        end=float(about["end"]),
        rows=rows,
        errors=int(about["errors"]),
        dropped=int(about["dropped"]),
        part=path.name,
    )


def _keep(blobs: BlobStore, table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=1, write_statistics=False)
    return blobs.put(sink.getvalue().to_pybytes())


def _mark_late(conn: Connection, capture: Capture) -> None:
    known = findings.windows(
        conn,
        capture.endpoint,
        version=capture.version,
        mode=capture.mode,
        start=capture.start,
        end=capture.end + 1e-6,
    )
    for window in known:
        findings.put_window(conn, replace(window, metrics={**window.metrics, LATE: True}))
