"""Snapshots: immutable versions of a table, made of content-addressed parts.

The identity of a snapshot is the digest of its schema and of its parts' digests in order, so a table whose content
is unchanged has the same digest, wherever and whenever it was taken. Only partitions whose fingerprint changed are
read; the profile of the whole is merged from the parts'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
from msgspec import Struct

from modelkeep.core import digests
from modelkeep.core.errors import Conflict, Damaged, Invalid, NotFound
from modelkeep.core.ports import BlobStore, Engine, Progress, Silent
from modelkeep.data import parts as parts_of
from modelkeep.data.buckets import Buckets
from modelkeep.data.changes import APPENDED, numbered, partition_of
from modelkeep.data.checks import Expected, infer
from modelkeep.data.columns import unknown_column
from modelkeep.data.parts import Draft, Part
from modelkeep.data.readers import File, pieces
from modelkeep.data.sources import open_source
from modelkeep.data.taking import Reading, cut, looked_at, much
from modelkeep.data.types import conform, unify
from modelkeep.registry import snapshots as registry
from modelkeep.spec.declaration import Data
from modelkeep.stats import profile
from modelkeep.stats.profile import Profile
from modelkeep.store.database import Database

if TYPE_CHECKING:
    from modelkeep.data.diffs import SnapshotDiff


class Manifest(Struct, frozen=True, kw_only=True):
    """What a snapshot is made of, as kept in its blob.

    Attributes:
        parts: In order.
        rows: In all parts.
        profile: Digest of the blob with the profile of all rows.
        parent: Digest of the snapshot taken before under the same name.
        buckets: How rows were partitioned by columns.
        format: Of this manifest.
    """

    parts: tuple[Part, ...]
    rows: int
    profile: str
    parent: str | None = None
    buckets: Buckets | None = None
    format: int = 1


@dataclass(frozen=True)
class Snapshot:
    """An immutable version of a table.

    Attributes:
        digest: Identity: of the schema and the parts' content.
        name: What it was taken as, usually the model's name.
        created: Seconds since 1970.
        parts: In order.
        rows: In all parts.
        schema: Of all parts together.
        profile: Digest of the blob with the profile.
        parent: Digest of the snapshot before under this name.
        buckets: How rows were partitioned by columns.
    """

    digest: str
    name: str
    created: float
    parts: tuple[Part, ...]
    rows: int
    schema: pa.Schema
    profile: str
    parent: str | None = None
    buckets: Buckets | None = None

    @property
    def bucket_rows(self) -> dict[int, int]:
        """Rows in each bucket; empty when the rows are not partitioned by columns."""
        counts = dict.fromkeys(range(self.buckets.count if self.buckets else 0), 0)
        for part in self.parts:
            for bucket, rows in part.bucket_rows:
                counts[bucket] += rows
        return counts


class Snapshots:
    """The snapshots of one home.

    Args:
        db: Where takings are recorded.
        blobs: Where parts, profiles and manifests are kept.
    """

    def __init__(self, db: Database, blobs: BlobStore) -> None:
        self._db = db
        self._blobs = blobs

    def take(
        self,
        data: Data,
        name: str,
        base: Path,
        now: float,
        progress: Progress | None = None,
        *,
        engine: Callable[[], Engine] | None = None,
    ) -> Snapshot:
        """Make a snapshot of what the source holds now; reads only partitions that are new or changed.

        Nothing is recorded unless everything could be read.

        Args:
            data: Names the source and the partitioning.
            name: Usually the model's name.
            base: The declaration's folder.
            now: Seconds since 1970.
            engine: Opens where much is read, partition by partition; None reads here.

        Raises:
            NotFound: There is no such file.
            Invalid: The source cannot be read as a table, with file and line; or types do not go together.
            Unavailable: The source or the disk is away.
            UserCodeFailed: The user's function raised.
        """
        progress = progress or Silent()
        source = open_source(data, base)
        prints = dict(source.fingerprint())
        buckets = Buckets.of(data.partition)
        before, known = self.latest(name), self._known(name)
        if before and before.buckets and before.buckets.same(buckets):
            buckets = before.buckets
        elif before and (before.buckets or buckets):
            known = {}  # cut anew
        held: dict[str, list[tuple[str, Part]]] = {}
        for stamp, part in known.values():
            held.setdefault(partition_of(part.name), []).append((stamp, part))
        fresh = [p for p, stamp in prints.items() if p not in held or held[p][0][0] != stamp]
        if fresh and buckets is not None:
            buckets = buckets.learnt(looked_at(source, fresh))
        reading = Reading(self._blobs, data, base, buckets)
        made = reading.partitions(source, fresh, progress, engine if much(fresh, prints) else None)
        kept: dict[str, Part | Draft] = {}
        stamps: dict[str, str] = {}
        for partition, stamp in prints.items():
            known_parts: Sequence[Part | Draft] = [part for _, part in held.get(partition, ())]
            for count, again in enumerate(made.get(partition, known_parts)):
                kept[numbered(partition, count)] = again
                stamps[numbered(partition, count)] = stamp
        appended = {part.name: part for stamp, part in known.values() if stamp == APPENDED}
        stamps |= dict.fromkeys(appended, APPENDED)
        return self._keep(name, {**kept, **appended}, stamps, buckets, now)

    def append(self, name: str, file: Path, now: float) -> Snapshot:
        """Add the rows of a file to the newest snapshot of a name, as a part of its own.

        Raises:
            NotFound: There is no such snapshot or file.
            Invalid: The file cannot be read, or its columns are not the snapshot's.
            Conflict: The same rows were appended before.
        """
        before = self.latest(name)
        if before is None:
            raise NotFound(f"there is no snapshot named {name!r}", hint="modelkeep data list")
        if not file.is_file():
            raise NotFound(f"there is no file {file}")
        source = File(str(file), file.suffix.lower(), path=file)
        made = parts_of.drafts(str(file), cut(lambda: pieces(source), before.buckets))
        _must_match(made[0].schema, before.schema, str(file))
        parts = dict(self._known(name))
        new = [draft.keep(self._blobs, f"{APPENDED}/{file.name}") for draft in made]
        if new[0].digest in {known.digest for stamp, known in parts.values() if stamp == APPENDED}:
            raise Conflict(f"the rows of {file} were appended before")
        kept: dict[str, Part | Draft] = {known: held for known, (_, held) in parts.items()}
        prints = {known: stamp for known, (stamp, _) in parts.items()}
        for part in new:
            called = f"{part.name}-{part.digest[:8]}"
            kept[called], prints[called] = msgspec.structs.replace(part, name=called), APPENDED
        return self._keep(name, kept, prints, before.buckets, now)

    def get(self, digest: str) -> Snapshot:
        """The snapshot with this digest. Raises ``NotFound``, ``Damaged``."""
        with self._db.read() as conn:
            return self._load(registry.get(conn, digest))

    def named(self, name: str) -> list[Snapshot]:
        """Every snapshot taken under a name, oldest first."""
        with self._db.read() as conn:
            records = registry.named(conn, name)
        return [self._load(record) for record in records]

    def latest(self, name: str) -> Snapshot | None:
        """The newest snapshot of a name; None before the first."""
        with self._db.read() as conn:
            record = registry.latest(conn, name)
        return None if record is None else self._load(record)

    def profile(self, snapshot: Snapshot) -> Profile:
        """Statistics of all rows. Raises ``Damaged``."""
        return Profile.from_bytes(_bytes(self._blobs, snapshot.profile))

    def checks(self, snapshot: Snapshot, data: Data) -> Expected:
        """What must hold of a snapshot: inferred from the first of its name, under what is declared."""
        with self._db.read() as conn:
            first = registry.named(conn, snapshot.name)[0]
        return infer(Profile.from_bytes(_bytes(self._blobs, self._manifest(first).profile)), data)

    def scan(self, snapshot: Snapshot, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, in order. Raises ``Damaged``, and ``Invalid`` for a column that is not there."""
        return pa.concat_tables(self.tables(snapshot, columns))

    def tables(self, snapshot: Snapshot, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows part by part, in order: for tables larger than memory."""
        for name in columns or ():
            if name not in snapshot.schema.names:
                raise unknown_column(name, snapshot.schema.names, "columns")
        yield from parts_of.each(self._blobs, snapshot.parts, snapshot.schema, columns)

    def bucket(self, snapshot: Snapshot, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one bucket of a snapshot that is partitioned by columns.

        Raises:
            Invalid: The snapshot is not partitioned, or has no such bucket.
        """
        if snapshot.buckets is None or not 0 <= number < snapshot.buckets.count:
            raise Invalid(f"snapshot {snapshot.digest[:12]} has no bucket {number}", path="data.partition")
        wanted = (
            snapshot.schema if columns is None else pa.schema([snapshot.schema.field(name) for name in columns])
        )
        found = (
            parts_of.read(self._blobs, part, columns, [i for i, held in enumerate(part.buckets) if held == number])
            for part in snapshot.parts
        )
        return pa.concat_tables([conform(table, wanted) for table in found])

    def diff(self, before: Snapshot, after: Snapshot, keys: Sequence[str] = ()) -> SnapshotDiff:
        """What changed from one snapshot to another; reads only the parts they do not share.

        Args:
            keys: Columns that say which row is which; without, rows are compared whole.

        Raises:
            Invalid: A column of numbers in one is text in the other.
        """
        from modelkeep.data.diffs import SnapshotDiff, compare_profiles, compare_rows, compare_schemas

        old, new = {part.digest for part in before.parts}, {part.digest for part in after.parts}
        gone = tuple(part for part in before.parts if part.digest not in new)
        come = tuple(part for part in after.parts if part.digest not in old)
        schema = unify([("before", before.schema), ("after", after.schema)])
        tables = [
            pa.concat_tables(parts_of.each(self._blobs, parts, schema)) if parts else schema.empty_table()
            for parts in (gone, come)
        ]
        added, removed, changed, examples = compare_rows(tables[0], tables[1], keys)
        columns_added, columns_removed, columns_changed = compare_schemas(before.schema, after.schema)
        return SnapshotDiff(
            before=before.digest,
            after=after.digest,
            rows=(before.rows, after.rows),
            parts_added=tuple(part.name for part in come),
            parts_removed=tuple(part.name for part in gone),
            rows_added=added,
            rows_removed=removed,
            rows_changed=changed,
            examples=examples,
            columns_added=columns_added,
            columns_removed=columns_removed,
            columns_changed=columns_changed,
            drift=compare_profiles(self._profiles(before.parts), self._profiles(come)) if come else (),
        )

    def _profiles(self, parts: Sequence[Part]) -> list[Profile]:
        return [Profile.from_bytes(_bytes(self._blobs, part.profile)) for part in parts]

    def _known(self, name: str) -> dict[str, tuple[str, Part]]:
        """Fingerprint and part of each partition of the newest snapshot."""
        with self._db.read() as conn:
            record = registry.latest(conn, name)
        if record is None:
            return {}
        parts = {part.digest: part for part in self._manifest(record).parts}
        return {
            partition: (held.fingerprint, msgspec.structs.replace(parts[held.digest], name=partition))
            for partition, held in record.fingerprints.items()
        }

    def _keep(
        self,
        name: str,
        made: dict[str, Part | Draft],
        prints: dict[str, str],
        buckets: Buckets | None,
        now: float,
    ) -> Snapshot:
        named = [
            (partition, held.columns if isinstance(held, Part) else held.schema)
            for partition, held in made.items()
        ]
        schema = unify(named)
        parts = tuple(
            held if isinstance(held, Part) else held.keep(self._blobs, partition)
            for partition, held in made.items()
        )
        digest = digests.of_value(
            [[(field.name, str(field.type)) for field in schema], [part.digest for part in parts]]
        )
        before = self.latest(name)
        if before is not None and before.digest == digest:
            manifest_parts, profiled, parent = before.parts, before.profile, before.parent
        else:
            manifest_parts, profiled = parts, self._profiled(before, parts)
            parent = before.digest if before else None
        manifest = Manifest(
            parts=manifest_parts,
            rows=sum(part.rows for part in parts),
            profile=profiled,
            parent=parent,
            buckets=buckets,
        )
        record = registry.Record(
            name=name,
            digest=digest,
            manifest=self._blobs.put(msgspec.json.encode(manifest)),
            created=now,
            rows=manifest.rows,
            parent=parent,
            fingerprints={
                part.name: registry.Part(fingerprint=prints[part.name], digest=part.digest, rows=part.rows)
                for part in parts
            },
        )
        self._db.write(lambda conn: registry.record(conn, record))
        latest = self.latest(name)
        assert latest is not None
        return latest

    def _profiled(self, before: Snapshot | None, parts: tuple[Part, ...]) -> str:
        """Digest of the profile of all parts: when parts were only added, the old one merged with theirs."""
        old = {part.digest for part in before.parts} if before else set()
        whole = Profile()
        rest = list(parts)
        if before and old <= {part.digest for part in parts} and len(old) == len(before.parts):
            whole = self.profile(before)
            rest = [part for part in parts if part.digest not in old]
        if len(rest) == 1 and not whole.rows:
            return rest[0].profile
        return self._blobs.put(profile.merge_all([whole, *self._profiles(rest)]).to_bytes())

    def _manifest(self, record: registry.Record) -> Manifest:
        try:
            return msgspec.json.decode(_bytes(self._blobs, record.manifest), type=Manifest)
        except (msgspec.DecodeError, NotFound) as error:
            raise Damaged(f"the manifest of snapshot {record.digest} cannot be read: {error}") from error

    def _load(self, record: registry.Record) -> Snapshot:
        manifest = self._manifest(record)
        return Snapshot(
            digest=record.digest,
            name=record.name,
            created=record.created,
            parts=manifest.parts,
            rows=record.rows,
            schema=unify([(part.name, part.columns) for part in manifest.parts]),
            profile=manifest.profile,
            parent=record.parent,
            buckets=manifest.buckets,
        )


def _must_match(found: pa.Schema, wanted: pa.Schema, file: str) -> None:
    for name in found.names:
        if name not in wanted.names:
            raise unknown_column(name, wanted.names, file)
    missing = [name for name in wanted.names if name not in found.names]
    if missing:
        raise Invalid(f"column {missing[0]!r} of the snapshot is not in the file", path=file)


def _bytes(blobs: BlobStore, digest: str) -> bytes:
    with blobs.open(digest) as stream:
        return stream.read()
