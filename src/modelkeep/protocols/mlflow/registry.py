"""Operations on registered models and their aliases; those on versions are in ``model_versions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Raw, Struct
from sqlalchemy import Connection

from modelkeep.core.errors import Invalid, NotFound, Refused
from modelkeep.lifecycle import rollout
from modelkeep.protocols.mlflow import checks, shapes
from modelkeep.protocols.mlflow.experiments import Pair
from modelkeep.protocols.mlflow.model_versions import (
    Search,
    Tag,
    check_tag,
    one,
    tags_of,
    told,
    version_shapes,
)
from modelkeep.protocols.mlflow.wire import Operation, Work
from modelkeep.registry import catalog, endpoints, models
from modelkeep.registry.model_contents import STAGES, Contents, latest_texts


class Model(Struct, frozen=True):
    """A registered model by name; with what may be said of it."""

    name: str
    description: str = ""
    tags: list[Pair] = []


class Rename(Struct, frozen=True):
    """renameRegisteredModel."""

    name: str
    new_name: str = ""


class Latest(Struct, frozen=True):
    """getLatestVersions."""

    name: str
    stages: list[str] = []


class Alias(Struct, frozen=True):
    """An alias of a model."""

    name: str
    alias: str
    version: str = ""


class Shape(Struct, gc=False):
    """``mlflow.RegisteredModel``."""

    name: str
    creation_timestamp: int
    last_updated_timestamp: int
    description: str
    latest_versions: Raw
    tags: Sequence[dict[str, str]]
    aliases: Sequence[dict[str, str]]


def model_shapes(conn: Connection, rows: Sequence[Any]) -> list[Shape]:
    """``mlflow.RegisteredModel`` of rows of ``models``."""
    numbers = [row.id for row in rows]
    newest, held = latest_texts(conn, numbers), Contents(conn, numbers, ())
    return [
        Shape(
            row.name,
            row.created_ms,
            row.updated_ms,
            row.description,
            Raw(f"[{','.join(newest.get(row.id, ()))}]".encode()),
            shapes.pairs(held.tags[row.id]) if row.id in held.tags else (),
            [{"alias": alias, "version": str(version)} for alias, version in held.aliases.get(row.id, ())],
        )
        for row in rows
    ]


def _create(asked: Model, now: int) -> Work:
    checks.model_name(asked.name)
    tags = tags_of(asked.tags)

    def work(conn: Connection) -> dict[str, Any]:
        row = catalog.create_model(conn, asked.name, now, asked.description, tags)
        told(conn, "model.created", asked.name, {}, now)
        return {"registered_model": model_shapes(conn, [row])[0]}

    return work


def _get(asked: Model, _: int) -> Work:
    return lambda conn: {"registered_model": model_shapes(conn, [catalog.find_model(conn, asked.name)])[0]}


def _rename(asked: Rename, now: int) -> Work:
    checks.model_name(asked.new_name)

    def work(conn: Connection) -> dict[str, Any]:
        row = catalog.rename(conn, asked.name, asked.new_name, now)
        told(conn, "model.renamed", asked.new_name, {"before": asked.name}, now)
        return {"registered_model": model_shapes(conn, [row])[0]}

    return work


def _update(asked: Model, now: int) -> Work:
    def work(conn: Connection) -> dict[str, Any]:
        row = catalog.describe_model(conn, asked.name, asked.description, now)
        return {"registered_model": model_shapes(conn, [row])[0]}

    return work


def _delete(asked: Model, now: int) -> Work:
    def work(conn: Connection) -> None:
        catalog.delete_model(conn, asked.name)
        told(conn, "model.deleted", asked.name, {}, now)

    return work


def _search(asked: Search, _: int) -> Work:
    limit = asked.max_results or 100
    checks.page(limit, 1000)

    def work(conn: Connection) -> dict[str, Any]:
        rows, token = catalog.search_models(conn, asked.filter, asked.order_by, limit, asked.page_token)
        return {"registered_models": model_shapes(conn, rows), **({"next_page_token": token} if token else {})}

    return work


def _latest(asked: Latest, _: int) -> Work:
    known = {stage.lower(): stage for stage in STAGES}
    for stage in asked.stages:
        if stage.lower() not in known:
            raise Invalid(f"Invalid Model Version stage: {stage}. Value must be one of {', '.join(STAGES)}.")
    wanted = {known[stage.lower()] for stage in asked.stages} or set(STAGES)

    def work(conn: Connection) -> dict[str, Any]:
        row = catalog.find_model(conn, asked.name)
        found = [each for each in catalog.latest(conn, [row.id]).get(row.id, ()) if each.stage in wanted]
        return {"model_versions": version_shapes(conn, found)}

    return work


def _set_model_tag(asked: Tag, now: int) -> Work:
    check_tag(asked.key, asked.value)

    def work(conn: Connection) -> None:
        catalog.set_model_tags(conn, asked.name, {asked.key: asked.value}, now)
        told(conn, "tag.set", asked.name, {"key": asked.key, "value": asked.value}, now)

    return work


def _delete_model_tag(asked: Tag, now: int) -> Work:
    def work(conn: Connection) -> None:
        catalog.delete_model_tag(conn, asked.name, asked.key)
        told(conn, "tag.deleted", asked.name, {"key": asked.key}, now)

    return work


def _set_alias(asked: Alias, now: int) -> Work:
    checks.free_alias(asked.alias)
    number = checks.version_number(asked.version)

    def work(conn: Connection) -> None:
        catalog.find_version(conn, asked.name, number)
        because = "a client set the alias champion"
        if asked.alias == "champion" and rollout.appoint(
            conn, asked.name, number, now=now / 1000, because=because
        ):
            return
        models.set_alias(conn, asked.name, asked.alias, number, now / 1000)
        told(conn, "alias.set", f"{asked.name}@{number}", {"alias": asked.alias}, now)

    return work


def _delete_alias(asked: Alias, now: int) -> Work:
    checks.alias(asked.alias)

    def work(conn: Connection) -> None:
        catalog.find_model(conn, asked.name)
        before = models.alias(conn, asked.name, asked.alias)
        if before is None:
            return
        served = [wanted.endpoint for wanted in endpoints.wanted(conn) if wanted.model == asked.name]
        if asked.alias == "champion" and served:
            raise Refused(
                f"endpoint {served[0]!r} serves the champion of {asked.name!r}; give the alias to another version"
            )
        models.delete_alias(conn, asked.name, asked.alias, now / 1000)
        told(conn, "alias.deleted", f"{asked.name}@{before}", {"alias": asked.alias}, now)

    return work


def _by_alias(asked: Alias, _: int) -> Work:
    checks.alias(asked.alias)

    def work(conn: Connection) -> dict[str, Any]:
        row = catalog.find_model(conn, asked.name)
        if asked.alias.lower() == "latest":
            found = catalog.latest(conn, [row.id]).get(row.id)
            if not found:
                raise NotFound(f"Latest version not found for model {asked.name}.")
            return one(conn, max(found, key=lambda each: int(each.version)))
        number = models.alias(conn, asked.name, asked.alias)
        if number is None:
            raise Invalid(f"Registered model alias {asked.alias} not found.")
        return one(conn, catalog.find_version(conn, asked.name, number))

    return work


OPERATIONS = [
    Operation("POST", "registered-models/create", Model, _create, "write"),
    Operation("GET", "registered-models/get", Model, _get),
    Operation("POST", "registered-models/rename", Rename, _rename, "write"),
    Operation("PATCH", "registered-models/update", Model, _update, "write"),
    Operation("DELETE", "registered-models/delete", Model, _delete, "write"),
    Operation("GET", "registered-models/search", Search, _search),
    Operation("GET", "registered-models/get-latest-versions", Latest, _latest),
    Operation("POST", "registered-models/get-latest-versions", Latest, _latest),
    Operation("POST", "registered-models/set-tag", Tag, _set_model_tag, "write"),
    Operation("DELETE", "registered-models/delete-tag", Tag, _delete_model_tag, "write"),
    Operation("POST", "registered-models/alias", Alias, _set_alias, "write"),
    Operation("DELETE", "registered-models/alias", Alias, _delete_alias, "write"),
    Operation("GET", "registered-models/alias", Alias, _by_alias),
]
