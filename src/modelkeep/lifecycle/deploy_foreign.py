"""Deploying a version that a client registered: its model folder becomes a package, and an endpoint serves it.

One transaction writes the package, what was trusted, the endpoint, the aliases and the history.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Conflict, Invalid, NotFound
from modelkeep.formats import adopt, runtimes
from modelkeep.formats.manifest import Folder
from modelkeep.lifecycle import rollout
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import artifacts, catalog, endpoints, events, models
from modelkeep.registry.models import Version
from modelkeep.store.blobs import put_tree, read_tree


class Deployed(Struct, frozen=True, kw_only=True):
    """What was done.

    Attributes:
        version: As it is registered now.
        endpoint: Where it answers.
        runtime: What runs it.
        note: Why that and nothing faster or safer.
        content: Digest of what its folder brings: what trusting it means.
        trusted: What the endpoint trusts.
    """

    version: Version
    endpoint: str
    runtime: str
    note: str
    content: str
    trusted: tuple[str, ...]


def deploy(
    keep: Keep,
    model: str,
    ref: str = "",
    *,
    endpoint: str = "",
    trust: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    because: str = "",
) -> Deployed:
    """Serve a version at an endpoint of its own, whoever made it. All traffic moves at once.

    What a version needs trusted stays trusted at its endpoint.

    Args:
        ref: Number or alias; empty means the newest version.
        endpoint: Its name; empty means the model's.
        trust: Digests and names that may run.
        settings: What the endpoint is told besides (``serve.limits``, ``serve.isolated.terms_of``).
        because: Why, for the history.

    Raises:
        NotFound: There is no such version, or it has no files here.
        Refused: Running it would run code that is not trusted; says what to trust, and how.
        Invalid, MissingExtra, Damaged: As ``formats.adopt.adopt``.
        Conflict: The endpoint is a declaration's, or another model's.
    """
    endpoint = endpoint or model
    with keep.db.read() as conn:
        version = models.version(conn, model, ref) if ref else _newest(conn, model)
        before = endpoints.get(conn, endpoint)
        _ours(before, model, endpoint)
        listing = _listing(keep, conn, version)
    known = tuple(before.settings.get("trust", ())) if before else ()
    trusted = tuple(dict.fromkeys((*known, *trust)))
    found, package = _packaged(keep, version, listing, trusted)
    told = {"unknown_fields": "refuse", **(settings or {}), "trust": list(trusted)}
    now = keep.clock.now()

    def work(conn: Connection) -> Version:
        return _write(
            conn, version, package, found, endpoint, told, fresh=set(trust) - set(known), now=now, because=because
        )

    return Deployed(
        version=keep.db.write(work),
        endpoint=endpoint,
        runtime=found.runtime,
        note=found.note,
        content=found.content,
        trusted=trusted,
    )


def _packaged(
    keep: Keep, version: Version, listing: Mapping[str, str], trusted: Sequence[str]
) -> tuple[adopt.Adopted, str]:
    """The version as a package that can be loaded, and the package's digest."""
    with TemporaryDirectory(prefix="modelkeep-") as name:
        folder = Path(name)
        for path, digest in listing.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with keep.blobs.open(digest) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        found = adopt.adopt(folder, trusted=trusted)
        if version.package:
            runtimes.load(Folder(folder), trusted=trusted)  # refused here rather than by serving
            return found, version.package
        return found, put_tree(keep.blobs, {path: folder / path for path in Folder(folder)})


def _write(
    conn: Connection,
    version: Version,
    package: str,
    found: adopt.Adopted,
    endpoint: str,
    settings: dict[str, Any],
    *,
    fresh: set[str],
    now: float,
    because: str,
) -> Version:
    _ours(endpoints.get(conn, endpoint), version.model, endpoint)
    if not version.package:
        catalog.change_version(
            conn,
            version.model,
            version.version,
            round(now * 1000),
            package=package,
            runtime=found.runtime,
            note=found.note,
        )
    subject = version.name
    if fresh:
        events.append(conn, "trust.granted", subject, {"endpoint": endpoint, "trust": sorted(fresh)}, now=now)
    made = models.version(conn, version.model, version.version)
    rollout.begin(
        conn,
        made,
        endpoint=endpoint,
        settings=settings,
        steps=(),
        now=now,
        because=because or f"deployed, run by {found.runtime}",
    )
    return models.version(conn, version.model, version.version)


def _newest(conn: Connection, model: str) -> Version:
    found = models.versions(conn, model)
    if not found:
        raise NotFound(f"model {model!r} has no version")
    return found[-1]


def _ours(before: endpoints.Wanted | None, model: str, endpoint: str) -> None:
    if before is None:
        return
    if before.model != model:
        raise Conflict(
            f"endpoint {endpoint!r} belongs to model {before.model!r}", hint="name another with --endpoint"
        )
    if "declaration" in before.settings:
        raise Conflict(
            f"endpoint {endpoint!r} is kept by a declaration",
            hint=f"use modelkeep apply or modelkeep rollback {model}@VERSION, or name another with --endpoint",
        )


def _listing(keep: Keep, conn: Connection, version: Version) -> dict[str, str]:
    """Digest by path of the version's files."""
    if version.package:
        return read_tree(keep.blobs, version.package)
    row = catalog.find_version(conn, version.model, version.version)
    owner, root = artifacts.of_uri(conn, row.source)
    found: dict[str, str] = {}
    todo = [root]
    while todo:
        for entry in artifacts.listing(conn, keep.blobs, owner, todo.pop()):
            if entry.size is None:
                todo.append(entry.path)
            else:
                path = entry.path.removeprefix(f"{root}/") if root else entry.path
                artifacts.segments(path)
                found[path] = artifacts.find(conn, keep.blobs, owner, entry.path)[0]
    if not found:
        raise Invalid(f"{version.name} has no files here", hint="log the model again, then register that")
    return found
