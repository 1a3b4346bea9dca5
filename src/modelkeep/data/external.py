"""Parts that stay where they are: Parquet files of a table that somebody else keeps, pinned by its version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct
from obstore.exceptions import BaseError, NotFoundError

from modelkeep.core.errors import Damaged, Invalid, NotFound
from modelkeep.data.types import canonical
from modelkeep.store import objects


class External(Struct, frozen=True, kw_only=True):
    """A Parquet file of a pinned table.

    Attributes:
        table: ``delta:///data/flights@7``: for people, when it is gone.
        location: Absolute path, or an object store's URL.
        bytes: Of the file, which never changes.
        rows: In it.
        constants: Columns that are not in the file because all its rows have one value (partition columns), with
            the Arrow type's name and the value as text; None is a missing value.
    """

    table: str
    location: str
    bytes: int
    rows: int
    constants: tuple[tuple[str, str, str | None], ...] = ()


@contextmanager
def opened(part: External) -> Iterator[pq.ParquetFile]:
    """The Parquet file.

    Raises:
        NotFound: It is gone: the version was vacuumed or expired.
        Damaged: It is not the file that was pinned.
        Unavailable: The store does not answer.
    """
    if "://" not in part.location:
        try:
            stream: Any = pa.memory_map(part.location, "r")
        except (FileNotFoundError, OSError) as error:
            raise _gone(part) from error
        size = stream.size()
    else:
        root, _, path = part.location.partition("://")[2].partition("/")
        url = f"{part.location.partition('://')[0]}://{root}"
        try:
            stream = objects.Ranges(objects.open_store(url), path)
        except (NotFoundError, FileNotFoundError) as error:
            raise _gone(part) from error
        except (BaseError, OSError) as error:
            raise objects.fault(part.location, error) from error
        size = stream.size
    if size != part.bytes:
        raise Damaged(
            f"{part.location} of {part.table} has {size} bytes, {part.bytes} when it was pinned",
            hint="somebody wrote over a file of the table; take the snapshot again",
        )
    try:
        with pq.ParquetFile(stream) as parquet:
            yield parquet
    except BaseError as error:
        raise objects.fault(part.location, error) from error
    except pa.ArrowException as error:
        raise Damaged(f"{part.location} of {part.table} cannot be read: {str(error).splitlines()[0]}") from error


def read(part: External, columns: Sequence[str] | None, groups: Sequence[int] | None) -> pa.Table:
    """The rows, or some columns of some row groups, with canonical types. Raises as ``opened`` does."""
    constants = {name: (kind, value) for name, kind, value in part.constants}
    with opened(part) as parquet:
        held = parquet.schema_arrow.names
        inside = held if columns is None else [name for name in columns if name in held]
        table = parquet.read(inside) if groups is None else parquet.read_row_groups(list(groups), inside)
        count = parquet.metadata.num_rows if groups is None else table.num_rows
        if groups is not None and not inside:
            count = sum(parquet.metadata.row_group(index).num_rows for index in groups)
    table = canonical(table, lambda said: Invalid(f"{part.location}: {said}", path="data.source"))
    for name, (kind, value) in constants.items():
        if columns is None or name in columns:
            text = pa.array([value] * count, pa.string())
            made = text.cast(pa.type_for_alias(kind))
            table = table.append_column(name, made) if table.num_columns else pa.table({name: made})
    return table


def pieces(part: External) -> Iterator[pa.Table]:
    """The rows, row group by row group. Raises as ``opened`` does."""
    with opened(part) as parquet:
        groups = parquet.metadata.num_row_groups
    for group in range(groups):
        yield read(part, None, [group])
    if not groups:
        yield read(part, None, None)


def _gone(part: External) -> NotFound:
    return NotFound(
        f"{part.location} is gone: the files of {part.table} were vacuumed or expired",
        hint="take a snapshot of a version that is still there; or keep versions longer than snapshots of them",
    )
