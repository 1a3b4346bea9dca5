"""Files of runs, logged models, traces and packages, by the paths clients name them with.

A path is a key of a table, never a path on a disk: it is looked up by its owner and its text, and its bytes are
found by digest. What looks like an attempt to leave its place is refused all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, and_, delete, exists, literal, or_, select

from modelkeep.core.errors import Invalid, NotFound, Refused
from modelkeep.core.ports import BlobStore
from modelkeep.registry import holds
from modelkeep.store import tables
from modelkeep.store.blobs import read_tree
from modelkeep.store.bulk import encode, fetch, insert_rows, select_in
from modelkeep.store.logged_tables import logged_model_artifacts
from modelkeep.store.trace_tables import trace_artifacts, trace_tags, traces
from modelkeep.store.writer import Mergeable

SCHEME = "mlflow-artifacts:/"
LOCATION = "mlflow.artifactLocation"
"""The tag of a trace that says where its files are."""

MAX_PATH = 2000
_PACKAGES = f"{SCHEME}packages/"

_ESCAPES = re.compile(r"%(2e|2f|5c|25|00|c0|c1)|[\\\x00-\x1f\x7f]|:(/|\Z)", re.IGNORECASE)
"""What hides a separator or a dot, as UTF-8's overlong forms do, and what begins a drive or a URI."""


_RUN = "SELECT id, experiment, artifact_uri FROM runs WHERE run_id = ?"
_MODEL = "SELECT id, artifact_uri FROM logged_models WHERE model_id = ?"


class Owner(Struct, frozen=True):
    """Whose files: a run's, a logged model's or a trace's by row number, a package's by digest."""

    kind: Literal["run", "model", "trace", "package"]
    number: int = 0
    digest: str = ""


class Entry(Struct, frozen=True):
    """One line of a listing; ``size`` in bytes is None for a folder."""

    path: str
    size: int | None


def segments(path: str) -> list[str]:
    """The parts of a path that was decoded once.

    Raises:
        Invalid: It is empty, absolute, climbs out, or hides something behind escapes.
    """
    parts = path.split("/")
    climbs = any(part in ("", ".", "..") or part.strip() in (".", "..") for part in parts)
    if climbs or _ESCAPES.search(path) or len(path) > MAX_PATH:
        raise Invalid(f"Invalid path {path[:200]!r}: expected a relative path with plain names between slashes")
    return parts


def locate(conn: Connection, path: str) -> tuple[Owner, str]:
    """Whose file a proxied path names, and its path below the owner's root (empty for the root itself).

    Raises:
        Invalid: The path is malformed.
        NotFound: It is below no run's, logged model's, trace's or package's root.
    """
    parts = segments(path)
    if parts[0] == "packages" and len(parts) > 1 and _known(conn, parts[1]):
        return Owner("package", digest=parts[1]), "/".join(parts[2:])
    for at in range(1, len(parts)):
        if parts[at] == "artifacts":
            root = SCHEME + "/".join(parts[: at + 1])
            looks = (_run_at, _model_at, _trace_at)
            found = next((owner for look in looks if (owner := look(conn, parts[at - 1], root))), None)
            if found is not None:
                return found, "/".join(parts[at + 1 :])
    raise NotFound(f"{path[:200]!r} is below the artifact root of no run, logged model or trace")


def has_package(digest: str) -> ColumnElement[bool]:
    """The condition that a version has a package: its own, or that of the one it is a copy of."""
    versions = tables.versions.c
    copied = and_(versions.files_of == digest, versions.source.startswith(_PACKAGES))
    return and_(literal(digest) != "", or_(versions.package == digest, copied))


def package_of(version: Any) -> str:
    """Digest of the package that has the files of a version, given its row; empty when none has."""
    package: str = version.package
    return package or (version.files_of if version.source.startswith(_PACKAGES) else "")


def of_uri(conn: Connection, uri: str) -> tuple[Owner, str]:
    """Like ``locate``, of an ``mlflow-artifacts:/`` URI. ``Refused`` for any other, which only clients open."""
    if not uri.startswith(SCHEME):
        raise Refused(f"the artifacts are at {uri!r}, which this server does not open", hint="read them there")
    return locate(conn, uri.removeprefix(SCHEME).strip("/"))


def listing(conn: Connection, blobs: BlobStore, owner: Owner, folder: str) -> list[Entry]:
    """Files and folders directly below a folder (empty: the root), by path; paths are below the owner's root."""
    below = f"{folder}/" if folder else ""
    found: dict[str, int | None] = {}
    for path, digest, size in _files(conn, blobs, owner):
        if not path.startswith(below):
            continue
        name, rest, _ = path.removeprefix(below).partition("/")
        if rest:
            found[below + name] = None
        else:
            found[path] = _size(blobs, digest) if size is None else size
    return [Entry(path, size) for path, size in sorted(found.items())]


def find(conn: Connection, blobs: BlobStore, owner: Owner, path: str) -> tuple[str, int]:
    """Digest and size in bytes of a file. Raises ``NotFound``."""
    (found,) = find_all(conn, blobs, [(owner, path)])
    if found is None:
        raise NotFound(f"No such artifact: '{path}'")
    return found


def find_all(
    conn: Connection, blobs: BlobStore, wanted: Sequence[tuple[Owner, str]]
) -> list[tuple[str, int] | None]:
    """Digest and size in bytes of each file; None of one that is not there. One statement for each owner."""
    by_owner: dict[Owner, set[str]] = {}
    for owner, path in wanted:
        by_owner.setdefault(owner, set()).add(path)
    found: dict[tuple[Owner, str], tuple[str, int]] = {}
    for owner, paths in by_owner.items():
        if owner.kind == "package":
            kept = read_tree(blobs, owner.digest)
            found |= {(owner, path): (kept[path], _size(blobs, kept[path])) for path in paths & kept.keys()}
            continue
        table, column = _table(owner)
        rows = select_in(conn, "path, digest, size", table, "path", paths, {column.name: owner.number})
        found |= {(owner, path): (digest, size) for path, digest, size in rows}
    return [found.get(each) for each in wanted]


class Put(Mergeable):
    """Attach a blob under a path, in place of what was there.

    Raises:
        Invalid: A part of the path is a file, or the path is a folder.
        Refused: The owner is a package, which never changes, or what was there is under legal hold.
    """

    __slots__ = ("digest", "owner", "path", "size")

    def __init__(self, owner: Owner, path: str, digest: str, size: int) -> None:
        self.owner = owner
        self.path = path
        self.digest = digest
        self.size = size

    @staticmethod
    def merge(conn: Connection, works: Sequence[Any]) -> list[Any]:
        """Attach these in order: two statements for each kind of owner, however many."""
        results: list[Any] = [None] * len(works)
        by_kind: dict[str, list[tuple[int, Put]]] = {}
        for at, work in enumerate(works):
            try:
                writable(work.owner, work.path)
                by_kind.setdefault(work.owner.kind, []).append((at, work))
            except (Invalid, Refused) as error:
                results[at] = error
        for numbered in by_kind.values():
            _attach(conn, numbered, results)
        return results


def _attach(conn: Connection, works: Sequence[tuple[int, Put]], results: list[Any]) -> None:
    """Write the files of owners of one kind; what is wrong with one goes into the results."""
    table, column = _table(works[0][1].owner)
    files, folders = _beside(conn, table.name, column.name, [work for _, work in works])
    rows = {}
    for at, work in works:
        number = work.owner.number
        place, above = (number, work.path), [(number, folder) for folder in _above(work.path)]
        if place in folders or any(folder in files for folder in above):
            results[at] = Invalid(f"Invalid path {work.path[:200]!r}: a file and a folder would have one name")
            continue
        if files.get(place, work.digest) != work.digest:
            try:
                holds.refuse_files(conn, work.owner.kind, number)
            except Refused as error:
                results[at] = error
                continue
        files[place] = work.digest
        folders.update(above)
        rows[place] = (*place, work.digest, work.size)
    conflict = f"ON CONFLICT ({column.name}, path) DO UPDATE SET digest = excluded.digest, size = excluded.size"
    insert_rows(conn, table, (column.name, "path", "digest", "size"), list(rows.values()), conflict)


_Place = tuple[int, str]


def _beside(
    conn: Connection, table: str, column: str, works: Sequence[Put]
) -> tuple[dict[_Place, str], set[_Place]]:
    """Of the paths that are written and those above them: the digests of files, and which are folders."""
    postgres = conn.dialect.name == "postgresql"
    order = ' COLLATE "C"' if postgres else ""  # "/" comes just before "0"
    places = list(dict.fromkeys((work.owner.number, work.path) for work in works))
    above = list(dict.fromkeys((number, folder) for number, path in places for folder in _above(path)))
    values: tuple[Any, ...] = ()
    for pairs in (places, above):
        values += ([number for number, _ in pairs], [path for _, path in pairs]) if postgres else (encode(pairs),)
    listed = "unnest(?::bigint[], ?::text[]) AS w (number, path)"
    if not postgres:
        number, path = (f"json_extract(value, '$[{at}]')" for at in (0, 1))
        listed = f"(SELECT {number} AS number, {path} AS path FROM json_each(?)) w"
    same = f"SELECT w.number, w.path, t.digest FROM {listed} JOIN {table} t ON t.{column} = w.number"
    inside = (
        f"SELECT 1 FROM {table} t WHERE t.{column} = w.number AND t.path{order} > w.path || '/'"
        f" AND t.path{order} < w.path || '0'"
    )
    query = (
        f"{same} AND t.path = w.path UNION ALL {same} AND t.path = w.path"
        f" UNION ALL SELECT w.number, w.path, NULL FROM {listed} WHERE EXISTS ({inside})"
    )
    found = fetch(conn, query, (*values, *values[: len(values) // 2]))
    files = {(number, path): digest for number, path, digest in found if digest is not None}
    return files, {(number, path) for number, path, digest in found if digest is None}


def _above(path: str) -> list[str]:
    return [path[:at] for at, letter in enumerate(path) if letter == "/"]


def writable(owner: Owner, path: str) -> None:
    """Whether a file may be put or deleted there. Raises ``Invalid`` for the root, ``Refused`` in a package."""
    if owner.kind == "package":
        raise Refused("a version's package never changes")
    if not path:
        raise Invalid("Invalid path: expected a file's name below the artifact root")


def remove(conn: Connection, owner: Owner, path: str) -> None:
    """Detach a file, or a folder with all below. Raises ``NotFound``, ``Refused`` in a package or under hold."""
    writable(owner, path)
    table, column = _table(owner)
    holds.refuse_files(conn, owner.kind, owner.number)
    below = table.c.path.startswith(f"{path}/", autoescape=True)
    gone = conn.execute(delete(table).where(column == owner.number, (table.c.path == path) | below))
    if not gone.rowcount:
        raise NotFound(f"No such artifact: '{path}'")


def _files(conn: Connection, blobs: BlobStore, owner: Owner) -> Iterable[tuple[str, str, int | None]]:
    if owner.kind == "package":
        return [(path, digest, None) for path, digest in read_tree(blobs, owner.digest).items()]
    table, column = _table(owner)
    rows: Sequence[Any] = conn.execute(
        select(table.c.path, table.c.digest, table.c.size).where(column == owner.number)
    ).all()
    return [(row.path, row.digest, row.size) for row in rows]


def _table(owner: Owner) -> tuple[Any, Any]:
    if owner.kind == "run":
        return tables.run_artifacts, tables.run_artifacts.c.run
    if owner.kind == "trace":
        return trace_artifacts, trace_artifacts.c.trace
    return logged_model_artifacts, logged_model_artifacts.c.model


def _known(conn: Connection, package: str) -> bool:
    return bool(conn.execute(select(exists().where(has_package(package)))).scalar())


def _run_at(conn: Connection, run_id: str, root: str) -> Owner | None:
    for number, experiment, uri in fetch(conn, _RUN, (run_id,)):
        kept = uri or f"{SCHEME}{experiment}/{run_id}/artifacts"
        return Owner("run", number) if kept == root else None
    return None


def _model_at(conn: Connection, model_id: str, root: str) -> Owner | None:
    for number, uri in fetch(conn, _MODEL, (model_id,)):
        return Owner("model", number) if uri == root else None
    return None


def _trace_at(conn: Connection, trace_id: str, root: str) -> Owner | None:
    kept = (trace_tags.c.trace == traces.c.id, trace_tags.c.key == LOCATION, trace_tags.c.value == root)
    number = conn.execute(select(traces.c.id).where(traces.c.trace_id == trace_id, *kept)).scalar()
    return None if number is None else Owner("trace", number)


def _size(blobs: BlobStore, digest: str) -> int:
    with blobs.open(digest) as stream:
        return stream.seek(0, 2)
