"""Reading and writing tables for commands: the format follows the file's name."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelkeep.core.errors import Invalid, NotFound, Unavailable

if TYPE_CHECKING:
    import pyarrow as pa

_WRITABLE = (".csv", ".parquet", ".jsonl", ".ndjson", ".arrow", ".feather")
_READABLE = ".csv, .parquet, .json, .jsonl, .ndjson, .arrow or .feather"


def read_table(path: Path) -> pa.Table:
    """The rows of a file; ``-`` reads JSON lines from standard input.

    Raises:
        NotFound: There is no such file.
        Invalid: The name does not say a known format, or the content is not in it.
    """
    import pyarrow as pa

    if str(path) != "-" and not path.exists():
        raise NotFound(f"there is no file {path}")
    try:
        return _read(path)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise Invalid(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror or error}") from error


def _read(path: Path) -> pa.Table:
    from pyarrow import csv, feather, json, parquet

    if str(path) == "-":
        return json.read_json(sys.stdin.buffer)
    match path.suffix.lower():
        case ".csv":
            return csv.read_csv(path)
        case ".parquet":
            return parquet.read_table(path)
        case ".json" | ".jsonl" | ".ndjson":
            return _json(path)
        case ".arrow" | ".feather":
            return feather.read_table(path)
    raise Invalid(f"{path}: the name does not say the format; expected {_READABLE}")


def _json(path: Path) -> pa.Table:
    """JSON lines, or one list of objects."""
    import msgspec
    import pyarrow as pa
    from pyarrow import json

    content = path.read_bytes()
    if not content.lstrip().startswith(b"["):
        return json.read_json(path)
    try:
        return pa.Table.from_pylist(msgspec.json.decode(content, type=list[dict[str, Any]]))
    except msgspec.DecodeError as error:
        raise Invalid(f"{path} is not JSON: {error}") from None


def write_tables(tables: Iterable[pa.Table], path: Path) -> int:
    """Write a file whole or not at all, table by table: the rows together need not fit into memory.

    Returns:
        How many rows.

    Raises:
        Invalid: The name does not say a known format, or the format cannot hold a column's type.
        Unavailable: It cannot be written.
    """
    import pyarrow as pa

    if path.suffix.lower() not in _WRITABLE:
        raise Invalid(f"{path}: the name does not say the format; expected {', '.join(_WRITABLE)}")
    fresh = path.with_name(path.name + ".new")
    rows = 0
    try:
        with contextlib.ExitStack() as stack:
            writer = None
            for table in tables:
                writer = writer or stack.enter_context(_writer(path.suffix.lower(), fresh, table.schema))
                writer.write_table(table)
                rows += table.num_rows
        fresh.replace(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        fresh.unlink(missing_ok=True)
        raise Invalid(f"{path} cannot hold these rows: {str(error).splitlines()[0]}") from None
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise Unavailable(f"cannot write {path}: {error.strerror or error}") from error
    return rows


def _writer(suffix: str, path: Path, schema: pa.Schema) -> Any:
    from pyarrow import csv, ipc, parquet

    match suffix:
        case ".csv":
            return csv.CSVWriter(str(path), schema)
        case ".parquet":
            return parquet.ParquetWriter(str(path), schema)
        case ".arrow" | ".feather":
            return ipc.new_file(str(path), schema)
    return _Lines(path)


class _Lines:
    """JSON lines with the interface of Arrow's writers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Lines:
        self.file = self.path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write_table(self, table: pa.Table) -> None:
        import msgspec

        for batch in table.to_batches(max_chunksize=10_000):
            self.file.write(msgspec.json.Encoder().encode_lines(batch.to_pylist()))
