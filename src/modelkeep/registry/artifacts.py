"""Files of runs, logged models, traces and packages, by the paths clients name them with.

A path is a key of a table, never a path on a disk: it is looked up by its owner and its text, and its bytes are
found by digest. What looks like an attempt to leave its place is refused all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import Connection, delete, select

from modelkeep.core.errors import Invalid, NotFound, Refused
from modelkeep.core.ports import BlobStore
from modelkeep.registry import holds
from modelkeep.store import tables
from modelkeep.store.blobs import read_tree
from modelkeep.store.bulk import fetch, insert_rows
from modelkeep.store.logged_tables import logged_model_artifacts, logged_models
from modelkeep.store.trace_tables import trace_artifacts, trace_tags, traces

SCHEME = "mlflow-artifacts:/"
LOCATION = "mlflow.artifactLocation"
"""The tag of a trace that says where its files are."""

MAX_PATH = 2000

_ESCAPES = re.compile(r"%(2e|2f|5c|25|00|c0|c1)|[\\\x00-\x1f\x7f]|:(/|\Z)", re.IGNORECASE)
"""What hides a separator or a dot, as UTF-8's overlong forms do, and what begins a drive or a URI."""


_RUN = "SELECT id, experiment, artifact_uri FROM runs WHERE run_id = ?"


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
    if parts[0] == "packages" and len(parts) > 1:
        known = select(tables.versions.c.package).where(tables.versions.c.package == parts[1])
        if conn.execute(known).first() is not None:
            return Owner("package", digest=parts[1]), "/".join(parts[2:])
    for at in range(1, len(parts)):
        if parts[at] == "artifacts":
            root = SCHEME + "/".join(parts[: at + 1])
            looks = (_run_at, _model_at, _trace_at)
            found = next((owner for look in looks if (owner := look(conn, parts[at - 1], root))), None)
            if found is not None:
                return found, "/".join(parts[at + 1 :])
    raise NotFound(f"{path[:200]!r} is below the artifact root of no run, logged model or trace")


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
    if owner.kind == "package":
        digest = read_tree(blobs, owner.digest).get(path)
        if digest is not None:
            return digest, _size(blobs, digest)
    else:
        table, column = _table(owner)
        row = conn.execute(
            select(table.c.digest, table.c.size).where(column == owner.number, table.c.path == path)
        ).first()
        if row is not None:
            return row.digest, row.size
    raise NotFound(f"No such artifact: '{path}'")


def put(conn: Connection, owner: Owner, path: str, digest: str, size: int) -> None:
    """Attach a blob under a path, in place of what was there.

    Raises:
        Invalid: A part of the path is a file, or the path is a folder.
        Refused: The owner is a package, which never changes, or what was there is under legal hold.
    """
    writable(owner, path)
    table, column = _table(owner)
    above = [path[:at] for at, letter in enumerate(path) if letter == "/"]
    there = f"SELECT path, digest FROM {table.name} WHERE {column.name} = ? AND path"
    found = dict(fetch(conn, f"{there} IN ({', '.join('?' * (len(above) + 1))})", (owner.number, *above, path)))
    was = found.pop(path, digest)
    order = ' COLLATE "C"' if conn.dialect.name == "postgresql" else ""  # "/" comes just before "0"
    inside = fetch(conn, f"{there}{order} > ? AND path{order} < ? LIMIT 1", (owner.number, f"{path}/", f"{path}0"))
    if found or inside:
        raise Invalid(f"Invalid path {path[:200]!r}: a file and a folder would have one name")
    if was != digest:
        holds.refuse_files(conn, owner.kind, owner.number)
    conflict = f"ON CONFLICT ({column.name}, path) DO UPDATE SET digest = excluded.digest, size = excluded.size"
    row = (owner.number, path, digest, size)
    insert_rows(conn, table, (column.name, "path", "digest", "size"), [row], conflict)


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


def _run_at(conn: Connection, run_id: str, root: str) -> Owner | None:
    for number, experiment, uri in fetch(conn, _RUN, (run_id,)):
        kept = uri or f"{SCHEME}{experiment}/{run_id}/artifacts"
        return Owner("run", number) if kept == root else None
    return None


def _model_at(conn: Connection, model_id: str, root: str) -> Owner | None:
    row = conn.execute(select(logged_models).where(logged_models.c.model_id == model_id)).first()
    return Owner("model", row.id) if row is not None and row.artifact_uri == root else None


def _trace_at(conn: Connection, trace_id: str, root: str) -> Owner | None:
    kept = (trace_tags.c.trace == traces.c.id, trace_tags.c.key == LOCATION, trace_tags.c.value == root)
    number = conn.execute(select(traces.c.id).where(traces.c.trace_id == trace_id, *kept)).scalar()
    return None if number is None else Owner("trace", number)


def _size(blobs: BlobStore, digest: str) -> int:
    with blobs.open(digest) as stream:
        return stream.seek(0, 2)
