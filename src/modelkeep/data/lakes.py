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
from urllib.parse import unquote

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError

from modelkeep.core.errors import Invalid, NotFound, Unavailable
from modelkeep.core.plugins import require
from modelkeep.data import external
from modelkeep.data.external import External
from modelkeep.data.types import canonical_type
from modelkeep.store import objects

ADDRESS = re.compile(r"(delta|iceberg)(?:\+([a-z0-9]+))?://(.+?)(?:@(-?\d+))?/?")

_NUMBER = re.compile(r"v?(\d+)[-.]")
"""Of a metadata file: ``00003-<uuid>.metadata.json`` of catalogs, ``v3.metadata.json`` of tables without one."""

_S3 = {
    "s3.endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "s3.access-key-id": ("AWS_ACCESS_KEY_ID",),
    "s3.secret-access-key": ("AWS_SECRET_ACCESS_KEY",),
    "s3.session-token": ("AWS_SESSION_TOKEN", "AWS_TOKEN"),
    "s3.region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
}

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
            address.place, version=address.version, storage_options=objects.settings(address.place)
        )
        version, protocol = table.version(), table.protocol()
        actions = pa.table(table.get_add_actions(flatten=True))
        schema = pa.schema(table.schema().to_arrow())
        partitions = list(table.metadata().partition_columns)
    except deltalake.exceptions.TableNotFoundError:
        raise NotFound(f"data.source: no Delta table at {address.place}") from None
    except (deltalake.exceptions.DeltaError, OSError) as error:
        said = objects.words(error)
        if address.version is not None:
            raise NotFound(
                f"data.source: {address.place} has no version {address.version} any more, or never had: {said}",
                hint="name a version that 'DeltaTable(...).history()' lists, and whose log was not cleaned up",
            ) from error
        raise Unavailable(f"data.source: {address.place} cannot be read: {said}") from error
    _plain_delta(address, table, set(protocol.reader_features or ()))
    made = {}
    for row in actions.to_pylist():
        path = unquote(row["path"])  # in the table, or a URI
        constants = tuple(
            _constant(name, schema.field(name).type, row.get(f"partition.{name}")) for name in partitions
        )
        made[path] = External(
            table=address.at(version),
            location=path.removeprefix("file://") if "://" in path else f"{address.place}/{path}",
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
        table = tables.StaticTable.from_metadata(metadata, _properties())
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
        raise Unavailable(f"data.source: {address.place} cannot be read: {objects.words(error)}") from error
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
    """The table's newest metadata file: of the highest number, which every commit raises, and of these the latest.

    Raises:
        NotFound: There is none.
        Unavailable: The store does not answer.
    """
    if address.place.endswith(".metadata.json"):
        return address.place
    folder = f"{address.place}/metadata"
    try:
        found = _in_store(folder) if "://" in folder else _in_folder(Path(folder))
    except (BaseError, OSError) as error:
        raise objects.fault(f"data.source: {folder}", error) from error
    numbered = []
    for time, name in found:
        if name.endswith(".metadata.json"):
            number = _NUMBER.match(name)
            numbered.append((int(number[1]) if number else -1, time, name))
    if not numbered:
        raise NotFound(
            f"data.source: no Iceberg table at {address.place}", hint="name the folder that holds metadata/"
        )
    return f"{folder}/{max(numbered)[2]}"


def _in_folder(folder: Path) -> list[tuple[float, str]]:
    return [(path.stat().st_mtime, path.name) for path in folder.iterdir()] if folder.is_dir() else []


def _in_store(folder: str) -> list[tuple[float, str]]:
    scheme, _, rest = folder.partition("://")
    root, _, prefix = rest.partition("/")
    store = objects.open_store(f"{scheme}://{root}", "data.source")
    here = obstore.list_with_delimiter(store, prefix)["objects"]
    return [(item["last_modified"].timestamp(), item["path"].rpartition("/")[2]) for item in here]


def _properties() -> dict[str, str]:
    """What pyiceberg is told of S3: what obstore reads of the environment. Other stores it finds by itself."""
    found = {}
    for name, variables in _S3.items():
        value = next((os.environ[variable] for variable in variables if os.environ.get(variable)), None)
        if value is not None:
            found[name] = value
    return found
