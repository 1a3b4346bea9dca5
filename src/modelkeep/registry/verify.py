"""Whether everything is as it was kept: the database, the history, and every digest anything refers to."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from sqlalchemy import Connection, Table, select, text

from modelkeep.core.errors import Damaged, NotFound
from modelkeep.core.ports import Progress, Silent
from modelkeep.registry import artifacts, events
from modelkeep.registry.lineage import Lineage
from modelkeep.registry.snapshots import Part
from modelkeep.store import tables
from modelkeep.store.blobs import Blobs, read_tree, verify_all
from modelkeep.store.database import Database
from modelkeep.store.logged_tables import logged_model_artifacts, logged_models
from modelkeep.store.trace_tables import trace_artifacts, traces


def verify(db: Database, blobs: Blobs, progress: Progress | None = None) -> list[str]:
    """Every fault found, one line each; empty when all is well.

    Reads all that is stored: the database's own structure, the hash chain of events, every blob against its
    digest, and for every digest a row names that its blob is there.

    Raises:
        Unavailable: The database or the blob store cannot be reached.
    """
    progress = progress or Silent()
    faults: list[str] = []
    references: dict[tuple[str, bool], str] = {}
    try:
        with db.read() as conn:
            progress.step("verifying the database", 0, 1)
            faults += _structure(conn)
            faults += events.verify(conn)
            references.update(_references(conn))
            progress.step("verifying the database", 1, 1)
    except Damaged as error:  # so damaged that it cannot be read to its end: the blobs are looked at all the same
        faults.append(error.message)
    broken = verify_all(blobs, progress)
    faults += broken
    return faults + _dangling(blobs, references, {fault.split()[1].rstrip(":") for fault in broken}, progress)


def _structure(conn: Connection) -> list[str]:
    if conn.dialect.name != "sqlite":
        return []  # PostgreSQL checks its pages as it reads them
    checked = [str(row[0]) for row in conn.execute(text("PRAGMA integrity_check"))]
    faults = [f"database: {line}" for line in checked if line != "ok"]
    for row in conn.execute(text("PRAGMA foreign_key_check")):
        faults.append(f"database: a row of {row[0]} refers to a row of {row[2]} that is not there")
    return faults


def _references(conn: Connection) -> Iterator[tuple[tuple[str, bool], str]]:
    """(digest, whether it is a tree) and who refers to it."""
    named = select(tables.models.c.name, tables.versions).join(
        tables.models, tables.models.c.id == tables.versions.c.model
    )
    for row in conn.execute(named):
        who = f"version {row.name}@{row.version}"
        yield (artifacts.package_of(row), True), f"package of {who}"
        if row.lineage != "{}":
            lineage = msgspec.json.decode(row.lineage, type=Lineage)
            yield (lineage.environment, False), f"environment of {who}"
            yield (lineage.code.dirty_diff, False), f"uncommitted changes of {who}"
    for row in conn.execute(select(tables.snapshots)):
        yield (row.manifest, False), f"manifest of snapshot {row.digest} of {row.name}"
        for partition, part in msgspec.json.decode(row.fingerprints, type=dict[str, Part]).items():
            yield (part.digest, False), f"part {partition!r} of snapshot {row.digest} of {row.name}"
    for row in conn.execute(select(tables.captures)):
        yield (row.digest, False), f"capture {row.id} of endpoint {row.endpoint}"
    for row in conn.execute(select(tables.windows)):
        yield (row.profile, False), f"profile of window {row.id} of endpoint {row.endpoint}"
    files: Table = tables.run_artifacts
    query = select(tables.runs.c.run_id, files.c.path, files.c.digest)
    for row in conn.execute(query.join(files, files.c.run == tables.runs.c.id)):
        yield (row.digest, False), f"artifact {row.path} of run {row.run_id}"
    files = logged_model_artifacts
    query = select(logged_models.c.model_id, files.c.path, files.c.digest)
    for row in conn.execute(query.join(files, files.c.model == logged_models.c.id)):
        yield (row.digest, False), f"artifact {row.path} of logged model {row.model_id}"
    files = trace_artifacts
    query = select(traces.c.trace_id, files.c.path, files.c.digest)
    for row in conn.execute(query.join(files, files.c.trace == traces.c.id)):
        yield (row.digest, False), f"artifact {row.path} of trace {row.trace_id}"


def _dangling(
    blobs: Blobs, references: dict[tuple[str, bool], str], broken: set[str], progress: Progress
) -> list[str]:
    faults = []
    for done, ((digest, tree), who) in enumerate(references.items(), start=1):
        if digest in broken:
            faults.append(f"{who}: blob {digest} is damaged")
        elif digest and not blobs.exists(digest):
            faults.append(f"{who}: blob {digest} is missing")
        elif digest and tree:
            faults += _missing_files(blobs, digest, who)
        progress.step("verifying references", done, len(references))
    return faults


def _missing_files(blobs: Blobs, digest: str, who: str) -> list[str]:
    try:
        files = read_tree(blobs, digest)
    except (Damaged, NotFound) as error:
        return [f"{who}: {error.message}"]
    return [f"{path} in {who}: blob {name} is missing" for path, name in files.items() if not blobs.exists(name)]
