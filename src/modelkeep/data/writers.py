"""Arrow tables to files: Parquet, CSV, JSON lines and Arrow IPC, each whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.ipc as paipc
import pyarrow.parquet as pq

from modelkeep.core.errors import Conflict, Invalid, Unavailable
from modelkeep.core.plugins import require
from modelkeep.store import objects


def write_tables(tables: Iterable[pa.Table], path: Path, *, suffix: str = "") -> int:
    """Write a file, table by table: the rows together need not fit into memory.

    The file is written beside its name, flushed to the disk and renamed. The first table's schema is the file's.

    Args:
        suffix: The format, when the name does not say it.

    Returns:
        How many rows.

    Raises:
        Invalid: The format is not known, or cannot hold a column's type; a later table does not fit the first.
        Unavailable: It cannot be written.
    """
    suffix = (suffix or path.suffix).lower()
    if suffix not in WRITERS:
        raise Invalid(f"{path}: the name does not say the format; expected {', '.join(WRITERS)}")
    fresh = path.with_name(f".{path.name}.new")
    rows = 0
    try:
        with ExitStack() as stack:
            writer: Any = None
            for table in tables:
                if writer is None:
                    schema = table.schema
                    writer = stack.enter_context(WRITERS[suffix](fresh, schema))
                writer.write_table(table if table.schema.equals(schema) else table.cast(schema))
                rows += table.num_rows
            if writer is None:
                fresh.write_bytes(b"")
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise Invalid(f"{path} cannot hold these rows: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        fresh.unlink(missing_ok=True)
    return rows


def write_delta(tables: Iterable[pa.Table], schema: pa.Schema, folder: str) -> int:
    """Make a Delta table of a folder, table by table; what is written shows when all of it is there.

    Args:
        schema: Of every table.
        folder: A path, or an object store's URL.

    Returns:
        How many rows.

    Raises:
        Conflict: There is a Delta table.
        MissingExtra: ``deltalake`` is not installed.
        Unavailable: It cannot be written.
    """
    deltalake = require("deltalake", "delta")
    rows = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for table in tables:
            rows += table.num_rows
            yield from table.to_batches(max_chunksize=100_000)

    options = objects.settings(folder)
    try:
        if deltalake.DeltaTable.is_deltatable(folder, options):
            raise Conflict(f"{folder} is a Delta table", hint="name another folder, or remove it first")
        deltalake.write_deltalake(
            folder, pa.RecordBatchReader.from_batches(schema, batches()), storage_options=options
        )
    except (deltalake.exceptions.DeltaError, OSError) as error:
        raise Unavailable(f"cannot write {folder}: {objects.words(error)}") from error
    return rows


class _Lines:
    """JSON lines with the interface of Arrow's writers."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._encode = msgspec.json.Encoder().encode_lines

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write_table(self, table: pa.Table) -> None:
        for batch in table.to_batches(max_chunksize=10_000):
            self._file.write(self._encode(batch.to_pylist()))


def _csv(path: Path, schema: pa.Schema) -> Any:
    return pacsv.CSVWriter(str(path), schema)


def _parquet(path: Path, schema: pa.Schema) -> Any:
    return pq.ParquetWriter(str(path), schema)


def _arrow(path: Path, schema: pa.Schema) -> Any:
    return paipc.new_file(str(path), schema)


def _lines(path: Path, schema: pa.Schema) -> _Lines:
    return _Lines(path)


WRITERS: dict[str, Callable[[Path, pa.Schema], AbstractContextManager[Any]]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".arrow": _arrow,
    ".feather": _arrow,
}
"""By the end of a file's name: what opens a file for tables of a schema."""
