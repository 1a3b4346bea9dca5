"""Delta Lake and Iceberg tables as sources: pinned by version, their files read where they lie.

``delta://flights@7`` is version 7 of the Delta table in the folder ``flights``; ``delta:///data/flights`` the
newest of an absolute one, ``delta+s3://bucket/flights`` one in an object store; the same with ``iceberg``, whose
versions are snapshot ids (https://delta.io, https://iceberg.apache.org).
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from modelkeep.core.errors import Invalid, NotFound, Unavailable
from modelkeep.core.plugins import require
from modelkeep.data import external
from modelkeep.data.external import External
from modelkeep.data.types import canonical_type

ADDRESS = re.compile(r"(delta|iceberg)(?:\+([a-z0-9]+))?://(.+?)(?:@(-?\d+))?/?")

_CONSTANT = {"int64": "int64", "float64": "double", "string": "string", "bool": "bool", "date32": "date32"}


def is_lake(address: str) -> bool:
    """Whether an address is of a Delta or Iceberg table."""
    return ADDRESS.fullmatch(address) is not None


@dataclass(frozen=True)
class LakeAddress:
    """An address, taken apart.

    Attributes:
        kind: ``delta`` or ``iceberg``.
        place: Folder, or URL of an object store.
        version: None for the newest.
    """

    kind: str
    place: str
    version: int | None

    @staticmethod
    def of(text: str, base: Path) -> LakeAddress:
        """From what is declared; relative folders start at ``base``. Raises ``Invalid``."""
        found = ADDRESS.fullmatch(text)
        if found is None:
            raise Invalid(
                f"{text!r}: expected delta://folder@version or iceberg://folder@snapshot", path="data.source"
            )
        kind, scheme, rest, version = found.groups()
        place = f"{scheme}://{rest}" if scheme else str((base / rest).resolve())
        return LakeAddress(kind, place, None if version is None else int(version))

    def at(self, version: int) -> str:
        """The address of a version."""
        scheme, sign, rest = self.place.partition("://")
        return f"{self.kind}+{scheme}://{rest}@{version}" if sign else f"{self.kind}://{self.place}@{version}"


class LakeSource:
    """A version of a table. Its partitions are the table's files, by their paths in the table."""

    def __init__(self, address: LakeAddress) -> None:
        self.address = address

    @cached_property
    def files(self) -> dict[str, External]:
        """By partition. Raises ``NotFound``, ``Invalid``, ``MissingExtra``, ``Unavailable``."""
        files = _delta(self.address) if self.address.kind == "delta" else _iceberg(self.address)
        if not files:
            raise Invalid(f"{self.address.place} holds no rows in this version", path="data.source")
        return files

    def fingerprint(self) -> Mapping[str, str]:
        """A file of a table never changes, so its path and size tell which rows it holds."""
        return {name: f"{file.bytes}-pinned" for name, file in self.files.items()}

    def schema(self) -> pa.Schema:
        """Of the first file."""
        return external.read(next(iter(self.files.values())), None, [0]).schema

    def pieces(self, partition: str) -> Iterator[pa.Table]:
        """The rows of a file, row group by row group."""
        return external.pieces(self.files[partition])

    def read(self, partition: str) -> Iterator[pa.RecordBatch]:
        """The same in batches."""
        for piece in self.pieces(partition):
            yield from piece.to_batches()


def _delta(address: LakeAddress) -> dict[str, External]:
    deltalake = require("deltalake", "delta")
    try:
        table = deltalake.DeltaTable(
            address.place, version=address.version, storage_options=_options(address.place)
        )
        version, protocol = table.version(), table.protocol()
        actions = pa.table(table.get_add_actions(flatten=True))
        uris = {unquote(urlsplit(uri).path if "://" in uri else uri): uri for uri in table.file_uris()}
        schema = pa.schema(table.schema().to_arrow())
        partitions = list(table.metadata().partition_columns)
    except deltalake.exceptions.TableNotFoundError:
        raise NotFound(f"data.source: no Delta table at {address.place}") from None
    except (deltalake.exceptions.DeltaError, OSError) as error:
        said = str(error).splitlines()[0]
        if address.version is not None:
            raise NotFound(
                f"data.source: {address.place} has no version {address.version} any more, or never had: {said}",
                hint="name a version that 'DeltaTable(...).history()' lists, and whose log was not cleaned up",
            ) from error
        raise Unavailable(f"data.source: {address.place} cannot be read: {said}") from error
    _plain_delta(address, table, set(protocol.reader_features or ()))
    made = {}
    for row in actions.to_pylist():
        path = unquote(row["path"])
        constants = tuple(
            _constant(name, schema.field(name).type, row.get(f"partition.{name}")) for name in partitions
        )
        full = path if "://" in path else next((uri for known, uri in uris.items() if known.endswith(path)), path)
        made[path] = External(
            table=address.at(version),
            location=full.removeprefix("file://") if "://" in full else full,
            bytes=row["size_bytes"],
            rows=row["num_records"] or 0,
            constants=constants,
        )
    return dict(sorted(made.items()))


def _plain_delta(address: LakeAddress, table: Any, features: set[str]) -> None:
    """Refuse what would give other rows than the table's: deleted rows, renamed columns."""
    settings = table.metadata().configuration
    if settings.get("delta.columnMapping.mode", "none") != "none":
        raise Invalid(
            f"{address.place} maps columns to other names in its files, which is not read here",
            path="data.source",
            hint="rewrite the table without delta.columnMapping.mode",
        )
    if "deletionVectors" in features and pa.table(table.deletion_vectors()).num_rows:
        raise Invalid(
            f"{address.place} marks deleted rows beside its files (deletion vectors), which is not read here",
            path="data.source",
            hint="run REORG TABLE ... APPLY (PURGE) first",
        )


def _constant(name: str, kind: pa.DataType, value: Any) -> tuple[str, str, str | None]:
    plain = str(canonical_type(kind)).removesuffix("[day]")
    if plain not in _CONSTANT:
        raise Invalid(
            f"the table is partitioned by {name!r} of type {kind}, which is not read", path="data.source"
        )
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, datetime.date):
        value = value.isoformat()
    return name, _CONSTANT[plain], None if value is None else str(value)


def _iceberg(address: LakeAddress) -> dict[str, External]:
    tables = require("pyiceberg.table", "iceberg")
    metadata = _newest_metadata(address)
    try:
        table = tables.StaticTable.from_metadata(metadata)
        pinned = address.version or getattr(table.current_snapshot(), "snapshot_id", None)
        if pinned is None:
            return {}
        if table.snapshot_by_id(pinned) is None:
            raise NotFound(
                f"data.source: {address.place} has no snapshot {pinned} any more, or never had",
                hint="name a snapshot that the table's history lists and that has not expired",
            )
        tasks = list(table.scan(snapshot_id=pinned).plan_files())
    except (OSError, ValueError) as error:
        raise Unavailable(f"data.source: {address.place} cannot be read: {str(error).splitlines()[0]}") from error
    made = {}
    for task in tasks:
        if task.delete_files:
            raise Invalid(
                f"{address.place} marks deleted rows beside its files, which is not read here",
                path="data.source",
                hint="rewrite the data files (rewrite_data_files) first",
            )
        location = task.file.file_path.removeprefix("file://")
        made[location.rpartition("/data/")[2]] = External(
            table=address.at(pinned),
            location=location,
            bytes=task.file.file_size_in_bytes,
            rows=task.file.record_count,
        )
    return dict(sorted(made.items()))


def _newest_metadata(address: LakeAddress) -> str:
    if address.place.endswith(".metadata.json") or "://" in address.place:
        return address.place
    found = sorted(
        Path(address.place, "metadata").glob("*.metadata.json"), key=lambda path: path.stat().st_mtime_ns
    )
    if not found:
        raise NotFound(
            f"data.source: no Iceberg table at {address.place}", hint="name the folder that holds metadata/"
        )
    return str(found[-1])


def _options(place: str) -> dict[str, str] | None:
    """What the table's own library needs to reach a store: the same environment as ours."""
    if "://" not in place:
        return None
    return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))}
