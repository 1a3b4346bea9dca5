"""What MLflow's registry does to models and versions beyond registering: describe, tag, stage, rename, delete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from modelkeep.core.errors import Conflict, Invalid, NotFound, Refused
from modelkeep.registry import artifacts, endpoints, holds
from modelkeep.registry.filters import Clause, Language
from modelkeep.registry.model_contents import STAGES, pair_values, pairs
from modelkeep.registry.queries import Attribute, Part, Search, Values, find
from modelkeep.store.bulk import encode, fetch_rows, insert_rows, run_many, select_in
from modelkeep.store.tables import aliases, model_tags, models, version_tags, versions

PROMPT = "mlflow.prompt.is_prompt"
"""The tag of registered models that are prompts; they are listed only when it is asked for."""

_NAMES = {"attribute": "attribute", "attributes": "attribute", "tag": "tag", "tags": "tag"}
_MODELS = Search(
    language=Language(
        entities=_NAMES,
        attributes={
            "name": "text",
            "creation_timestamp": "number",
            "last_updated_timestamp": "number",
        },
        aliases={"timestamp": "last_updated_timestamp"},
        nulls=frozenset({"tag"}),
    ),
    base="models r",
    columns="r.*",
    attributes={
        "name": Attribute("r.name"),
        "creation_timestamp": Attribute("r.created_ms"),
        "last_updated_timestamp": Attribute("r.updated_ms"),
    },
    values={"tag": Values("model_tags", "model")},
    ties=(("name", False),),
    kind="model",
    name="r.name",
)
_SHOWN = (
    *("model", "version", "run_id", "source", "run_link", "description", "user_id", "stage", "status"),
    *("status_message", "created_ms", "updated_ms", "package", "model_id"),
)
"""Columns of versions that lists need: without the long texts of how each was made and judged."""


def _shown(table: str) -> str:
    return ", ".join(f"{table}.{column}" for column in _SHOWN)


_VERSIONS = Search(
    language=Language(
        entities=_NAMES,
        attributes={
            "name": "text",
            "run_id": "text",
            "source_path": "text",
            "user_id": "text",
            "current_stage": "text",
            "version_number": "number",
            "creation_timestamp": "number",
            "last_updated_timestamp": "number",
        },
        aliases={"version": "version_number"},
        listed=frozenset({"name", "run_id"}),
        nulls=frozenset({"tag"}),
    ),
    base="versions r JOIN models m ON m.id = r.model",
    columns=f"{_shown('r')}, m.name AS name",
    attributes={
        "name": Attribute("m.name"),
        "run_id": Attribute("r.run_id"),
        "source_path": Attribute("r.source"),
        "user_id": Attribute("r.user_id"),
        "current_stage": Attribute("r.stage"),
        "version_number": Attribute("r.version"),
        "creation_timestamp": Attribute("r.created_ms"),
        "last_updated_timestamp": Attribute("r.updated_ms"),
    },
    values={"tag": Values("version_tags", "model", match="r.model AND v.version = r.version")},
    ties=(("last_updated_timestamp", True), ("name", False), ("version_number", True)),
    kind="model",
    name="m.name",
)


class Origin(Struct, frozen=True):
    """Where a version registered by a client comes from.

    Attributes:
        source: The URI its files are at, as the client gave it or as it was resolved.
        model_id: The logged model it was registered from; empty when none was.
        files_of: Id of the run or logged model, or digest of the package, that has its files; empty when none has.
    """

    source: str
    run_id: str = ""
    run_link: str = ""
    model_id: str = ""
    description: str = ""
    files_of: str = ""


class NewVersion(Struct, frozen=True):
    """A version to be: of the model with this row number."""

    model: int
    origin: Origin
    tags: Mapping[str, str]
    now_ms: int


_HIGHEST = "SELECT coalesce(max(v.version), 0) FROM versions v WHERE v.model = models.id"
_NEW = (
    *("model", "version", "run_id", "source", "run_link", "description", "model_id"),
    *("files_of", "created_ms", "updated_ms"),
)


def find_model(conn: Connection, name: str) -> Any:
    """The row of a registered model. Raises ``NotFound``."""
    found = fetch_rows(conn, "SELECT * FROM models WHERE name = ?", (name,))
    if not found:
        raise unknown(name)
    return found[0]


def unknown(name: str) -> NotFound:
    """There is no such registered model."""
    return NotFound(f"Registered Model with name={name} not found")


def find_version(conn: Connection, name: str, version: int) -> Any:
    """The row of a version, with its model's ``name``. Raises ``NotFound``."""
    query = "SELECT v.*, m.name AS name FROM versions v JOIN models m ON m.id = v.model"
    found = fetch_rows(conn, f"{query} WHERE m.name = ? AND v.version = ?", (name, version))
    if not found:
        raise NotFound(f"Model Version (name={name}, version={version}) not found")
    return found[0]


def create_model(
    conn: Connection, name: str, now_ms: int, description: str = "", tags: Mapping[str, str] | None = None
) -> Any:
    """Register a name. Raises ``Conflict``."""
    row = {"name": name, "description": description, "created_ms": now_ms, "updated_ms": now_ms}
    try:
        with conn.begin_nested():
            conn.execute(insert(models), row)
    except IntegrityError:
        raise Conflict(f"Registered Model (name={name}) already exists.") from None
    set_model_tags(conn, name, tags or {}, now_ms)
    return find_model(conn, name)


def rename(conn: Connection, name: str, new: str, now_ms: int) -> Any:
    """Give a model another name. Raises ``NotFound``, ``Conflict``, ``Refused`` while it is served or held."""
    row = find_model(conn, name)
    _not_served(conn, name)
    holds.refuse(conn, "model", name)
    try:
        with conn.begin_nested():
            conn.execute(update(models).where(models.c.id == row.id).values(name=new, updated_ms=now_ms))
    except IntegrityError:
        raise Conflict(f"Registered Model (name={new}) already exists.") from None
    return find_model(conn, new)


def describe_model(conn: Connection, name: str, description: str, now_ms: int) -> Any:
    """Change a model's description. Raises ``NotFound``, ``Refused`` when the model itself is held."""
    row = find_model(conn, name)
    _keep(conn, "model's text", name, {"description": description}, [("description", row.description)])
    conn.execute(update(models).where(models.c.id == row.id).values(description=description, updated_ms=now_ms))
    return find_model(conn, name)


def delete_model(conn: Connection, name: str) -> None:
    """Forget a model, its versions, tags and aliases. Raises ``NotFound``, ``Refused`` while served or held."""
    row = find_model(conn, name)
    _not_served(conn, name)
    holds.refuse(conn, "model", name)
    conn.execute(delete(models).where(models.c.id == row.id))


def set_model_tags(conn: Connection, name: str, tags: Mapping[str, str], now_ms: int) -> None:
    """Set tags of a model. Raises ``NotFound``, ``Refused`` when it is held and one would change."""
    row = find_model(conn, name)
    kept = select(model_tags.c.key, model_tags.c.value).where(model_tags.c.model == row.id)
    _keep(conn, "model's text", name, tags, kept)
    rows = [(row.id, key, value) for key, value in tags.items()]
    conflict = "ON CONFLICT (model, key) DO UPDATE SET value = excluded.value"
    insert_rows(conn, model_tags, ("model", "key", "value"), rows, conflict)
    _touch(conn, row.id, now_ms)


def delete_model_tag(conn: Connection, name: str, key: str) -> None:
    """Take a tag away; no error when it is not there. Raises ``NotFound`` for the model."""
    holds.refuse(conn, "model's text", name)
    row = find_model(conn, name)
    conn.execute(delete(model_tags).where(model_tags.c.model == row.id, model_tags.c.key == key))


def numbers(conn: Connection, names: Iterable[str]) -> dict[str, int]:
    """Row numbers of registered models by name; those that do not exist are missing."""
    return dict(select_in(conn, "name, id", models, "name", set(names)))


def has_package(conn: Connection, run_id: str, package: str) -> bool:
    """Whether a version that a run made, or a copy of it, has this package."""
    known = exists().where(versions.c.run_id == run_id, artifacts.has_package(package))
    return bool(conn.execute(select(known)).scalar())


def create_versions(conn: Connection, wanted: Sequence[NewVersion]) -> list[Any]:
    """Add the next versions of models, in order: a few statements, however many."""
    touched = {new.model: (new.now_ms, new.model) for new in wanted}
    # First, and in order: it puts concurrent registrations in line, and two that touch the same models wait once.
    run_many(conn, "UPDATE models SET updated_ms = ? WHERE id = ?", [touched[model] for model in sorted(touched)])
    highest = dict(select_in(conn, f"id, ({_HIGHEST})", models, "id", touched))
    numbered, rows, tags = [], [], []
    for new in wanted:
        highest[new.model] = number = highest[new.model] + 1
        numbered.append((new.model, number))
        said = new.origin
        texts = (said.run_id, said.source, said.run_link, said.description, said.model_id, said.files_of)
        rows.append((new.model, number, *texts, new.now_ms, new.now_ms))
        tags += [(new.model, number, key, value) for key, value in new.tags.items()]
    insert_rows(conn, versions, _NEW, rows)
    insert_rows(conn, version_tags, ("model", "version", "key", "value"), tags)
    query = f"SELECT v.*, m.name AS name FROM {pairs(conn)} JOIN models m ON m.id = w.model"
    query += " JOIN versions v ON v.model = w.model AND v.version = w.version"
    made = {(row.model, row.version): row for row in fetch_rows(conn, query, pair_values(conn, numbered))}
    return [made[pair] for pair in numbered]


def change_version(conn: Connection, name: str, version: int, now_ms: int, **values: Any) -> Any:
    """Change a version's description or stage. Raises ``NotFound``."""
    row = find_version(conn, name, version)
    if "description" in values:
        told = {"description": values["description"]}
        _keep(conn, "version", f"{name}@{version}", told, [("description", row.description)])
    mine = (versions.c.model == row.model) & (versions.c.version == version)
    conn.execute(update(versions).where(mine).values(updated_ms=now_ms, **values))
    _touch(conn, row.model, now_ms)
    return find_version(conn, name, version)


def set_stage(conn: Connection, name: str, version: int, stage: str, now_ms: int, *, archive: bool = False) -> Any:
    """Move a version to a stage (any case), the others of it to the archive. Raises ``NotFound``, ``Invalid``."""
    known = {each.lower(): each for each in STAGES}
    to = known.get(stage.lower())
    if to is None:
        raise Invalid(f"Invalid Model Version stage: {stage}. Value must be one of {', '.join(STAGES)}.")
    row = find_version(conn, name, version)
    if archive:
        if to not in ("Staging", "Production"):
            raise Invalid(
                f"Model version transition cannot archive existing model versions because '{stage}' is not an"
                " Active stage. Valid stages are Staging, Production"
            )
        others = (versions.c.model == row.model) & (versions.c.version != version) & (versions.c.stage == to)
        conn.execute(update(versions).where(others).values(stage="Archived", updated_ms=now_ms))
    return change_version(conn, name, version, now_ms, stage=to)


def delete_version(conn: Connection, name: str, version: int, now_ms: int) -> None:
    """Forget a version, its tags and aliases. Raises ``NotFound``, ``Refused`` while it is served or held."""
    row = find_version(conn, name, version)
    _not_served(conn, name, version)
    holds.refuse(conn, "version", f"{name}@{version}")
    for table in (aliases, version_tags, versions):
        conn.execute(delete(table).where(table.c.model == row.model, table.c.version == version))
    _touch(conn, row.model, now_ms)


def set_version_tags(conn: Connection, name: str, version: int, tags: Mapping[str, str], now_ms: int) -> None:
    """Set tags of a version. Raises ``NotFound``."""
    row = find_version(conn, name, version)
    kept = select(version_tags.c.key, version_tags.c.value).where(
        version_tags.c.model == row.model, version_tags.c.version == version
    )
    _keep(conn, "version", f"{name}@{version}", tags, kept)
    _write_version_tags(conn, row.model, version, tags)
    _touch(conn, row.model, now_ms)


def _write_version_tags(conn: Connection, model: int, version: int, tags: Mapping[str, str]) -> None:
    rows = [(model, version, key, value) for key, value in tags.items()]
    conflict = "ON CONFLICT (model, version, key) DO UPDATE SET value = excluded.value"
    insert_rows(conn, version_tags, ("model", "version", "key", "value"), rows, conflict)


def delete_version_tag(conn: Connection, name: str, version: int, key: str) -> None:
    """Take a tag away; no error when it is not there. Raises ``NotFound`` for the version."""
    holds.refuse(conn, "version", f"{name}@{version}")
    row = find_version(conn, name, version)
    mine = (version_tags.c.model == row.model) & (version_tags.c.version == version)
    conn.execute(delete(version_tags).where(mine, version_tags.c.key == key))


def latest(conn: Connection, numbers: Iterable[int]) -> dict[int, list[Any]]:
    """The newest version of each stage, in the order of their numbers, by model's row number."""
    ids = list(numbers)
    postgres = conn.dialect.name == "postgresql"
    wanted = "SELECT unnest(?::bigint[]) AS model" if postgres else "SELECT value AS model FROM json_each(?)"
    stages = " UNION ALL ".join(f"SELECT '{stage}' AS stage" for stage in STAGES)
    newest = "SELECT max(n.version) FROM versions n WHERE n.model = w.model AND n.stage = s.stage"
    query = (
        f"SELECT {_shown('v')}, m.name AS name FROM ({wanted}) w CROSS JOIN ({stages}) s"
        f" JOIN models m ON m.id = w.model JOIN versions v ON v.model = w.model AND v.version = ({newest})"
    )
    found: dict[int, list[Any]] = {}
    for row in fetch_rows(conn, query, (ids if postgres else encode(ids),)):
        found.setdefault(row.model, []).append(row)
    for several in found.values():
        if len(several) > 1:
            several.sort(key=lambda row: row.version)
    return found


def search_models(
    conn: Connection, text: str, orders: Sequence[str], limit: int, token: str
) -> tuple[list[Any], str]:
    """A page of rows of ``models`` by name unless ordered, and the next token. Raises ``Invalid``."""
    return _page(conn, _MODELS, "r.id", text, orders, limit, token)


def search_versions(
    conn: Connection, text: str, orders: Sequence[str], limit: int, token: str
) -> tuple[list[Any], str]:
    """A page of rows of versions, the last changed first unless ordered, and a token. Raises ``Invalid``."""
    return _page(conn, _VERSIONS, "r.model", text, orders, limit, token)


def _page(
    conn: Connection, search: Search, number: str, text: str, orders: Sequence[str], limit: int, token: str
) -> tuple[list[Any], str]:
    """Without prompts, unless the filter asks for them; clients say so with ``!=`` on a tag models do not have."""
    asked = any(_of_prompts(clause) and clause.op == "=" for clause in search.language.parse(text))
    is_prompt = f"EXISTS (SELECT 1 FROM model_tags p WHERE p.model = {number} AND p.key = ? AND p.value = 'true')"
    wanted = Part(is_prompt if asked else f"NOT {is_prompt}", (PROMPT,))
    return find(
        conn, search, text=text, orders=orders, limit=limit, token=token, conditions=[wanted], apart=_of_prompts
    )


def _of_prompts(clause: Clause) -> bool:
    return clause.entity == "tag" and clause.key == PROMPT


def _keep(conn: Connection, kind: str, name: str, new: Mapping[str, str], kept: Any) -> None:
    """Refuse another value of what is held; what is empty may be filled."""
    if new and holds.any_at_all(conn):
        pairs = kept if isinstance(kept, list) else conn.execute(kept).all()
        holds.refuse_change(conn, kind, name, new, [(key, value) for key, value in pairs if value])


def _touch(conn: Connection, number: int, now_ms: int) -> None:
    run_many(conn, "UPDATE models SET updated_ms = ? WHERE id = ?", [(now_ms, number)])


def _not_served(conn: Connection, name: str, version: int | None = None) -> None:
    for wanted in endpoints.wanted(conn):
        served = {route.version for route in wanted.routes}
        if wanted.model == name and (version is None or version in served):
            what = name if version is None else f"{name}@{version}"
            raise Refused(f"{what} is served at endpoint '{wanted.endpoint}'", hint="stop serving it first")
