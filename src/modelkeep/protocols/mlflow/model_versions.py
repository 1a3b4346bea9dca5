"""Operations on the versions of registered models."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid, ModelkeepError, NotFound
from modelkeep.protocols.mlflow import checks, shapes
from modelkeep.protocols.mlflow.announcements import PROMPT
from modelkeep.protocols.mlflow.experiments import Pair, Text
from modelkeep.protocols.mlflow.wire import Operation, Work
from modelkeep.registry import catalog, events, logged, models, runs
from modelkeep.registry.catalog import NewVersion, Origin
from modelkeep.registry.model_contents import Contents
from modelkeep.store.writer import Mergeable

_CLIMBS = re.compile(r"(^|[/\\])\.\.([/\\]|$)|%2e|%2f|%5c|%25|[\\#?;\x00-\x1f]", re.IGNORECASE)
_OF_PROMPTS = "dummy-source"
"""What clients say is the source of a prompt, which has no files; the only such text that is accepted."""
_CLIENT = "mlflow client"
"""Who does what nobody is known to have asked for."""
_PACKAGES = ["mlflow-artifacts:", "", "packages"]
_PROXY = "/api/2.0/mlflow-artifacts/artifacts/"
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]+:")  # one letter is a drive


class Search(Struct, frozen=True):
    """searchRegisteredModels and searchModelVersions."""

    filter: str = ""
    max_results: int = 0
    order_by: list[str] = []
    page_token: Text = ""


class CreateVersion(Struct, frozen=True):
    """createModelVersion."""

    name: str
    source: str
    run_id: str = ""
    tags: list[Pair] = []
    run_link: str = ""
    description: str = ""
    model_id: str = ""


class Version(Struct, frozen=True):
    """A version by number; with what may be changed of it."""

    name: str
    version: str
    description: str = ""
    stage: str = ""
    archive_existing_versions: bool = False


class Tag(Struct, frozen=True):
    """A tag of a model, or of one of its versions."""

    name: str
    key: str
    value: str = ""
    version: str = ""


class Shape(Struct, omit_defaults=True, gc=False):
    """``mlflow.ModelVersion``."""

    name: str
    version: str
    creation_timestamp: int
    last_updated_timestamp: int
    user_id: str
    current_stage: str
    description: str
    source: str
    run_id: str
    status: str
    status_message: str
    run_link: str
    tags: list[dict[str, str]]
    aliases: list[str]
    model_id: str = ""


def version_shapes(conn: Connection, rows: Sequence[Any]) -> list[Shape]:
    """``mlflow.ModelVersion`` of rows of versions."""
    held = Contents(conn, [row.model for row in rows], [(row.model, row.version) for row in rows])
    return [version_shape(row, held) for row in rows]


def version_shape(row: Any, held: Contents) -> Shape:
    """``mlflow.ModelVersion`` of one row."""
    named = held.aliases.get(row.model)
    aliases = [alias for alias, to in named if to == row.version] if named else []
    return _version_shape(row, held.version_tags.get((row.model, row.version), ()), aliases)


def _version_shape(row: Any, tags: Iterable[tuple[str, str]], aliases: list[str]) -> Shape:
    return Shape(
        row.name,
        str(row.version),
        row.created_ms,
        row.updated_ms,
        row.user_id,
        row.stage,
        row.description,
        files_uri(row),
        row.run_id,
        row.status,
        row.status_message,
        row.run_link,
        shapes.pairs(tags),
        aliases,
        row.model_id,
    )


def files_uri(row: Any) -> str:
    """Where clients find a version's files: in the package when ``apply`` made it, else where they were put."""
    if row.package:
        return f"mlflow-artifacts:/packages/{row.package}"
    source: str = row.source
    return source


def _source(conn: Connection, asked: CreateVersion) -> Origin:
    """Where the version's files are, checked: a place this server keeps, or a URI only clients open."""
    source, run_id, model_id, files_of = asked.source, asked.run_id, asked.model_id, ""
    if source == _OF_PROMPTS and any(tag.key == PROMPT and tag.value.lower() == "true" for tag in asked.tags):
        return Origin(source, run_id, asked.run_link, model_id, asked.description)
    if _CLIMBS.search(source) or not source.strip():
        raise checks.invalid("source", source, "expected a plain URI without '..', escapes, queries or fragments")
    checks.length("source", source, 2048)
    if source.startswith("models:/"):
        source, run_id, model_id, files_of = _of_models(conn, asked)
    elif source.startswith("runs:/"):
        files_of, _, path = source.removeprefix("runs:/").partition("/")
        if model_id or files_of != run_id:
            raise _elsewhere(source, "model_id" if model_id else "run_id")
        source = f"{shapes.artifact_uri(runs.find(conn, files_of))}/{path}"
    elif _kept(source):
        files_of = _owner(conn, asked)
    if model_id and not run_id:
        run_id = logged.find(conn, model_id).source_run_id
    return Origin(source, run_id, asked.run_link, model_id, asked.description, files_of)


def _of_models(conn: Connection, asked: CreateVersion) -> tuple[str, str, str, str]:
    """Place, run, logged model and owner of the files of a logged model, or of another version."""
    name, _, ref = asked.source.removeprefix("models:/").strip("/").partition("/")
    if not ref and "@" not in name:
        if asked.model_id != name:
            raise _elsewhere(asked.source, "model_id")
        found = logged.find(conn, name)
        return found.artifact_uri, asked.run_id or found.source_run_id, name, name
    if "@" in name:
        name, _, ref = name.partition("@")
    version = catalog.find_version(conn, name, models.version(conn, name, ref).version)
    if asked.run_id not in ("", version.run_id) or asked.model_id not in ("", version.model_id):
        raise Invalid(
            f"Invalid model version source: '{asked.source}'. The run_id and model_id request parameters must"
            " match the referenced model version."
        )
    return files_uri(version), version.run_id, version.model_id, version.package or version.files_of


def _parts(uri: str) -> list[str]:
    """Scheme (empty for a plain path), authority and the parts of the path."""
    found = _SCHEME.match(uri)
    scheme = found[0] if found else ""
    rest, authority = uri[len(scheme) :], ""
    if scheme and rest.startswith("//"):
        authority, _, rest = rest[2:].partition("/")
    return [scheme.lower(), authority.lower(), *(part for part in rest.split("/") if part)]


def _kept(source: str) -> bool:
    """Whether it is a place on this server: in its blob store, by any name for it, or on its own disk."""
    scheme, _, *path = _parts(source)
    proxied = scheme in ("http:", "https:") and _PROXY in f"/{'/'.join(path)}/"
    return proxied or scheme in ("", "mlflow-artifacts:", *(f"{local}:" for local in checks.LOCAL))


def _owner(conn: Connection, asked: CreateVersion) -> str:
    """The package, run or logged model that the client says has the source. Raises ``Invalid`` if it has not."""
    source, run_id, model_id = _parts(asked.source), asked.run_id, asked.model_id
    root = ""
    with contextlib.suppress(NotFound):
        if model_id:
            root = logged.find(conn, model_id).artifact_uri
        elif run_id:
            root = shapes.artifact_uri(runs.find(conn, run_id))
    within = _parts(root)
    if root and source[: len(within)] == within:
        return model_id or run_id
    named = "model_id" if model_id else "run_id"
    if source[0] in ("http:", "https:", "mlflow-artifacts:"):
        if source[:3] == _PACKAGES and run_id and catalog.has_package(conn, run_id, "".join(source[3:4])):
            return source[3]
        raise _elsewhere(asked.source, named)
    raise Invalid(
        f"Invalid model version source: '{asked.source}'. To use a local path as a model version source, the"
        f" {named} request parameter has to be specified and the local path has to be contained within the"
        f" artifact directory of the {named.removesuffix('_id')} specified by the {named}."
    )


def _elsewhere(source: str, named: str) -> Invalid:
    return Invalid(
        f"Invalid model version source: '{source}'. The {named} request parameter must identify the resource that"
        " contains the source."
    )


def tags_of(given: Iterable[Pair]) -> dict[str, str]:
    for tag in given:
        check_tag(tag.key, tag.value)
    return {tag.key: tag.value for tag in given}


def check_tag(key: str, value: str) -> None:
    checks.key(key, "key")
    checks.length("value", value, checks.MAX_REGISTRY_TAG)


def told(conn: Connection, kind: str, subject: str, data: dict[str, Any], now: int) -> None:
    """Write a change into the history; webhooks are told from there."""
    events.append(conn, kind, subject, data, now=now / 1000, actor=_CLIENT)


class _Creation(Mergeable):
    """Create a version."""

    __slots__ = ("actor", "asked", "now", "tags")

    def __init__(self, asked: CreateVersion, now: int) -> None:
        checks.model_name(asked.name)
        self.tags = tags_of(asked.tags)
        self.asked = asked
        self.now = now
        self.actor = _CLIENT

    def sign(self, actor: str) -> None:
        self.actor = actor

    @staticmethod
    def merge(conn: Connection, works: Sequence[_Creation]) -> list[Any]:
        known = catalog.numbers(conn, [work.asked.name for work in works])
        results: list[Any] = [None] * len(works)
        wanted: dict[int, NewVersion] = {}
        for at, work in enumerate(works):
            try:
                if work.asked.name not in known:
                    raise catalog.unknown(work.asked.name)
                origin = _source(conn, work.asked)
                wanted[at] = NewVersion(known[work.asked.name], origin, work.tags, work.now)
            except ModelkeepError as error:
                results[at] = error
        made = list(zip(wanted, catalog.create_versions(conn, list(wanted.values())), strict=True))
        events.append_all(conn, [works[at].event(row.version) for at, row in made])
        for at, row in made:
            results[at] = {"model_version": _version_shape(row, sorted(works[at].tags.items()), [])}
        return results

    def event(self, version: int) -> events.Change:
        """What the history says."""
        source = {"source": self.asked.source}
        return events.Change(
            "version.created", f"{self.asked.name}@{version}", source, self.now / 1000, self.actor
        )


def one(conn: Connection, row: Any) -> dict[str, Any]:
    """The answer about one version."""
    return {"model_version": version_shapes(conn, [row])[0]}


def _get_version(asked: Version, _: int) -> Work:
    number = checks.version_number(asked.version)
    return lambda conn: one(conn, catalog.find_version(conn, asked.name, number))


def _update_version(asked: Version, now: int) -> Work:
    number = checks.version_number(asked.version)
    return lambda conn: one(
        conn, catalog.change_version(conn, asked.name, number, now, description=asked.description)
    )


def _stage(asked: Version, now: int) -> Work:
    number, archive = checks.version_number(asked.version), asked.archive_existing_versions

    def work(conn: Connection) -> dict[str, Any]:
        row = catalog.set_stage(conn, asked.name, number, asked.stage, now, archive=archive)
        told(conn, "version.staged", f"{asked.name}@{number}", {"stage": row.stage}, now)
        return one(conn, row)

    return work


def _delete_version(asked: Version, now: int) -> Work:
    number = checks.version_number(asked.version)

    def work(conn: Connection) -> None:
        catalog.delete_version(conn, asked.name, number, now)
        told(conn, "version.deleted", f"{asked.name}@{number}", {}, now)

    return work


def _search_versions(asked: Search, _: int) -> Work:
    limit = asked.max_results or 10_000
    checks.page(limit, 200_000)

    def work(conn: Connection) -> dict[str, Any]:
        rows, token = catalog.search_versions(conn, asked.filter, asked.order_by, limit, asked.page_token)
        return {"model_versions": version_shapes(conn, rows), **({"next_page_token": token} if token else {})}

    return work


def _download_uri(asked: Version, _: int) -> Work:
    number = checks.version_number(asked.version)
    return lambda conn: {"artifact_uri": files_uri(catalog.find_version(conn, asked.name, number))}


def _set_version_tag(asked: Tag, now: int) -> Work:
    number = checks.version_number(asked.version)
    check_tag(asked.key, asked.value)

    def work(conn: Connection) -> None:
        catalog.set_version_tags(conn, asked.name, number, {asked.key: asked.value}, now)
        told(conn, "tag.set", f"{asked.name}@{number}", {"key": asked.key, "value": asked.value}, now)

    return work


def _delete_version_tag(asked: Tag, now: int) -> Work:
    number = checks.version_number(asked.version)

    def work(conn: Connection) -> None:
        catalog.delete_version_tag(conn, asked.name, number, asked.key)
        told(conn, "tag.deleted", f"{asked.name}@{number}", {"key": asked.key}, now)

    return work


OPERATIONS = [
    Operation("POST", "model-versions/create", CreateVersion, _Creation, "write"),
    Operation("GET", "model-versions/get", Version, _get_version),
    Operation("PATCH", "model-versions/update", Version, _update_version, "write"),
    Operation("POST", "model-versions/transition-stage", Version, _stage, "write"),
    Operation("DELETE", "model-versions/delete", Version, _delete_version, "write"),
    Operation("GET", "model-versions/search", Search, _search_versions),
    Operation("GET", "model-versions/get-download-uri", Version, _download_uri),
    Operation("POST", "model-versions/set-tag", Tag, _set_version_tag, "write"),
    Operation("DELETE", "model-versions/delete-tag", Tag, _delete_version_tag, "write"),
]
