"""Deploying a version that a client registered: its model folder becomes a package, and an endpoint serves it.

One transaction writes the package, what was trusted, the endpoint, the aliases and the history.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Conflict, Invalid, NotFound
from modelkeep.formats import adopt, runtimes, samples
from modelkeep.formats.inference import infer_fields
from modelkeep.formats.manifest import Folder
from modelkeep.lifecycle import rollout
from modelkeep.lifecycle.keep import Keep
from modelkeep.registry import artifacts, catalog, endpoints, events, models
from modelkeep.registry.models import Version
from modelkeep.spec.expressions import RolloutStep
from modelkeep.spec.names import unknown
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
    step: RolloutStep | None = None,
    because: str = "",
) -> Deployed:
    """Serve a version at an endpoint of its own, whoever made it: with all traffic at once, or as a step says.

    What a version needs trusted stays trusted at its endpoint.

    Args:
        ref: Number or alias; empty means the newest version.
        endpoint: Its name; empty means the model's.
        trust: Digests and names that may run.
        settings: What the endpoint is told besides (``serve.limits``, ``serve.isolated.terms_of``).
        step: How it stands beside the version that answers there, whose settings count for both
            (``rollout.beside``); None for all traffic.
        because: Why, for the history.

    Raises:
        NotFound: There is no such version, or it has no files here; or nothing that it could stand beside.
        Refused: Running it would run code that is not trusted; says what to trust, and how.
        Invalid, MissingExtra, Damaged: As ``formats.adopt.adopt``.
        Conflict: The endpoint is a declaration's, or another model's; or the version has all traffic already.
    """
    endpoint = endpoint or model
    with keep.db.read() as conn:
        if step is not None:
            settings = rollout.live(conn, endpoint).settings
        version = models.version(conn, model, ref) if ref else _newest(conn, model)
        known = _trusted(conn, model, endpoint)
        listing = _listing(keep, conn, version)
    trusted = tuple(dict.fromkeys((*known, *trust)))
    found, package = _packaged(keep, version, listing, trusted, settings or {})
    plan = _Plan(
        package=package,
        found=found,
        endpoint=endpoint,
        known=known,
        trust=tuple(trust),
        settings=settings or {},
        step=step,
        because=because,
    )
    return _serve(keep, lambda conn: version, plan)


def deploy_function(
    keep: Keep,
    model: str,
    file: Path,
    sample: pa.Table,
    *,
    beside: Sequence[Path] = (),
    endpoint: str = "",
    settings: Mapping[str, Any] | None = None,
    because: str = "",
) -> Deployed:
    """Register a Python file that defines ``predict`` as the next version of a model, and serve it.

    Naming the file is trusting it: its digest, with those of the files beside it, is written into the history.

    Args:
        file: See ``formats.function_runtime``.
        sample: Rows that tell the inputs; the first are kept to try the function with.
        beside: Files that it reads, found in the folder that its ``load`` is given.
        endpoint, settings, because: As for ``deploy``.

    Raises:
        Invalid: The file cannot be read, defines no ``predict``, fails on the sample, or two files have one name.
        UserCodeFailed: Importing it raised.
        Conflict: The endpoint is a declaration's, or another model's.
    """
    endpoint = endpoint or model
    with keep.db.read() as conn:
        known = _trusted(conn, model, endpoint)
    rows = {name: sample.column(name).to_pylist()[: samples.ROWS] for name in sample.column_names}
    with TemporaryDirectory(prefix="modelkeep-") as name:
        folder = Path(name)
        _copy((file, *beside), folder)
        fields = infer_fields(sample, sample.column_names)
        content = adopt.content_of(folder)
        found = adopt.adopt_function(folder, file.name, fields, rows, trusted=[content])
        _masked(Folder(folder), settings or {})
        package = put_tree(keep.blobs, {path: folder / path for path in Folder(folder)})
    now = keep.clock.now()

    def register(conn: Connection) -> Version:
        made = {"package": package, "runtime": found.runtime, "note": found.note}
        return models.register(conn, model, run_id="", lineage=None, evaluation={}, now=now, **made)

    plan = _Plan(
        package=package,
        found=found,
        endpoint=endpoint,
        known=known,
        trust=(content,),
        settings=settings or {},
        because=because,
    )
    return _serve(keep, register, plan)


def _packaged(
    keep: Keep,
    version: Version,
    listing: Mapping[str, str],
    trusted: Sequence[str],
    settings: Mapping[str, Any],
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
        _masked(Folder(folder), settings)
        if version.package:
            runtimes.load(Folder(folder), trusted=trusted)  # refused here rather than by serving
            return found, version.package
        return found, put_tree(keep.blobs, {path: folder / path for path in Folder(folder)})


def _masked(files: Folder, settings: Mapping[str, Any]) -> None:
    """Raise ``Invalid`` when what is to be masked is no input: a slip there would let out what was to stay in."""
    names = [field.name for field in runtimes.signature(files).inputs]
    for name in settings.get("mask", ()):
        if name not in names:
            raise Invalid(unknown(name, names, "an input of the model"), path="monitor.log.mask")


class _Plan(Struct, frozen=True, kw_only=True):
    """What is about to be served, and what the endpoint is told."""

    package: str
    found: adopt.Adopted
    endpoint: str
    known: tuple[str, ...]
    trust: tuple[str, ...]
    settings: Mapping[str, Any]
    because: str
    step: RolloutStep | None = None

    @property
    def trusted(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.known, *self.trust)))


def _serve(keep: Keep, version: Callable[[Connection], Version], plan: _Plan) -> Deployed:
    """One transaction: the package, what is trusted, the endpoint, the aliases and the history."""
    now = keep.clock.now()

    def work(conn: Connection) -> Version:
        return _write(conn, version(conn), plan, now)

    return Deployed(
        version=keep.db.write(work),
        endpoint=plan.endpoint,
        runtime=plan.found.runtime,
        note=plan.found.note,
        content=plan.found.content,
        trusted=plan.trusted,
    )


def _write(conn: Connection, version: Version, plan: _Plan, now: float) -> Version:
    model, number, found, endpoint = version.model, version.version, plan.found, plan.endpoint
    _trusted(conn, model, endpoint)  # once more: another change may have got there first
    if not version.package:
        ms = round(now * 1000)
        about = {"package": plan.package, "runtime": found.runtime, "note": found.note}
        catalog.change_version(conn, model, number, ms, **about)
    fresh = sorted(set(plan.trust) - set(plan.known))
    if fresh:
        events.append(conn, "trust.granted", version.name, {"endpoint": endpoint, "trust": fresh}, now=now)
    because = plan.because or f"deployed, run by {found.runtime}"
    if plan.step is not None:
        version = models.version(conn, model, number)
        trust = plan.trusted
        rollout.beside(conn, version, endpoint=endpoint, trust=trust, step=plan.step, now=now, because=because)
        return models.version(conn, model, number)
    rollout.begin(
        conn,
        models.version(conn, model, number),
        endpoint=endpoint,
        settings={"unknown_fields": "refuse", **plan.settings, "trust": list(plan.trusted)},
        steps=(),
        now=now,
        because=because,
    )
    return models.version(conn, model, number)


def _newest(conn: Connection, model: str) -> Version:
    found = models.versions(conn, model)
    if not found:
        raise NotFound(f"model {model!r} has no version")
    return found[-1]


def _copy(files: Sequence[Path], folder: Path) -> None:
    for path in files:
        if (folder / path.name).exists():
            raise Invalid(f"two files are called {path.name}", path=str(path))
        try:
            shutil.copyfile(path, folder / path.name)
        except OSError as error:
            raise Invalid(f"cannot be read: {error.strerror}", path=str(path)) from None


def _trusted(conn: Connection, model: str, endpoint: str) -> tuple[str, ...]:
    """What the endpoint trusts already. Raises ``Conflict`` when it is not to be changed from here."""
    before = endpoints.get(conn, endpoint)
    if before is None:
        return ()
    if before.model != model:
        raise Conflict(
            f"endpoint {endpoint!r} belongs to model {before.model!r}", hint="name another with --endpoint"
        )
    if "declaration" in before.settings:
        raise Conflict(
            f"endpoint {endpoint!r} is kept by a declaration",
            hint=f"use modelkeep apply or modelkeep rollback {model}@VERSION, or name another with --endpoint",
        )
    return tuple(before.settings.get("trust", ()))


def granted(conn: Connection, model: str) -> tuple[str, ...]:
    """What the endpoints of a model trust: digests and names that may run wherever its versions are run."""
    served = [wanted for wanted in endpoints.wanted(conn) if wanted.model == model]
    return tuple(dict.fromkeys(item for wanted in served for item in wanted.settings.get("trust", ())))


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
