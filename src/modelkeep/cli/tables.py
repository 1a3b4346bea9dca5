"""Reading tables for commands: the format follows the file's name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelkeep.core.errors import Invalid, NotFound, Unavailable

if TYPE_CHECKING:
    import pyarrow as pa

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
