"""What hangs on registered models and versions: tags, aliases and newest versions, read for many at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Connection

from modelkeep.store.bulk import Query, encode, fetch, fetch_each, number_array, selecting
from modelkeep.store.tables import aliases, model_tags, version_tags

STAGES = ("None", "Staging", "Production", "Archived")
"""Of versions, as MLflow has them."""

_FIELDS = {
    "name": "m.name",
    "version": "CAST(v.version AS text)",
    "creation_timestamp": "v.created_ms",
    "last_updated_timestamp": "v.updated_ms",
    "user_id": "v.user_id",
    "current_stage": "v.stage",
    "description": "v.description",
    "source": "CASE v.package WHEN '' THEN v.source ELSE 'mlflow-artifacts:/packages/' || v.package END",
    "run_id": "v.run_id",
    "status": "v.status",
    "status_message": "v.status_message",
    "run_link": "v.run_link",
}
"""SQL of the fields of ``mlflow.ModelVersion``; tags and aliases follow, and ``model_id`` if there is one."""

_TAGS = "FROM version_tags t WHERE t.model = v.model AND t.version = v.version"
_ALIASES = "FROM aliases a WHERE a.model = v.model AND a.version = v.version"


class Contents:
    """Tags and aliases of models and versions.

    Args:
        numbers: Row numbers of models.
        versions: Whose tags are wanted: model's row number and version; None for all versions of the models.

    Attributes:
        tags: (key, value) by model's row number.
        aliases: (alias, version) by model's row number.
        version_tags: (key, value) by model's row number and version.
    """

    def __init__(
        self, conn: Connection, numbers: Iterable[int], versions: Sequence[tuple[int, int]] | None = None
    ) -> None:
        ids = list(dict.fromkeys(numbers))
        self.tags: dict[int, list[tuple[str, str]]] = {}
        self.aliases: dict[int, list[tuple[str, int]]] = {}
        self.version_tags: dict[tuple[int, int], list[tuple[str, str]]] = {}
        if not ids:
            return
        asked = [
            selecting(conn, "model, key, value", model_tags, "model", ids),
            selecting(conn, "model, alias, version", aliases, "model", ids),
        ]
        if versions is None:
            asked.append(selecting(conn, "model, version, key, value", version_tags, "model", ids))
        elif versions:
            asked.append(_version_tags(conn, versions))
        tags, named, *told = fetch_each(conn, asked)
        for model, key, value in tags:
            self.tags.setdefault(model, []).append((key, value))
        for model, alias, version in named:
            self.aliases.setdefault(model, []).append((alias, version))
        for model, version, key, value in chain.from_iterable(told):
            self.version_tags.setdefault((model, version), []).append((key, value))


def _version_tags(conn: Connection, wanted: Sequence[tuple[int, int]]) -> Query:
    query = f"SELECT t.model, t.version, t.key, t.value FROM {pairs(conn)}"
    query += " JOIN version_tags t ON t.model = w.model AND t.version = w.version"
    return query, pair_values(conn, wanted)


def pairs(conn: Connection) -> str:
    """SQL of pairs of a model's row number and a version, as ``w``; ``pair_values`` makes its values."""
    if conn.dialect.name == "postgresql":
        return "unnest(?::bigint[], ?::int[]) AS w (model, version)"
    model, version = (f"json_extract(value, '$[{at}]')" for at in (0, 1))
    return f"(SELECT {model} AS model, {version} AS version FROM json_each(?)) w"


def pair_values(conn: Connection, wanted: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
    """The values of ``pairs``."""
    if conn.dialect.name == "postgresql":
        return number_array([model for model, _ in wanted]), number_array([version for _, version in wanted])
    return (encode(wanted),)


def latest_texts(conn: Connection, numbers: Sequence[int]) -> dict[int, list[str]]:
    """The newest version of each stage, in the order of their numbers, by model's row number.

    Each is the JSON of ``mlflow.ModelVersion``, written by the database: in half the time of reading columns.
    """
    postgres = conn.dialect.name == "postgresql"
    query = _LATEST_POSTGRES if postgres else _LATEST_SQLITE
    values = (number_array(numbers) if postgres else encode(numbers),)
    found: dict[int, list[str]] = {}
    for model, _, text in sorted(fetch(conn, query, values)):
        found.setdefault(model, []).append(text)
    return found


def _latest(postgres: bool) -> str:
    made, listed = ("json_build_object", "json_agg") if postgres else ("json_object", "json_group_array")
    fields = ", ".join(f"'{name}', {sql}" for name, sql in _FIELDS.items())
    tag = f"{made}('key', t.key, 'value', t.value)"
    for name, each, rows in (("tags", tag, _TAGS), ("aliases", "a.alias", _ALIASES)):
        some, none = f"(SELECT {listed}({each}) {rows})", "'[]'"
        some, none = (some, f"{none}::json") if postgres else (f"json({some})", f"json({none})")
        fields += f", '{name}', CASE WHEN EXISTS (SELECT 1 {rows}) THEN {some} ELSE {none} END"
    text = f"CASE v.model_id WHEN '' THEN {made}({fields}) ELSE {made}({fields}, 'model_id', v.model_id) END"
    stages = " UNION ALL ".join(f"SELECT '{stage}' AS stage" for stage in STAGES)
    newest = "FROM versions n WHERE n.model = w.model AND n.stage = s.stage"
    if postgres:
        text, wanted = f"({text})::text", "SELECT unnest(?::bigint[]) AS model"
        mine = f"v.model = w.model AND v.version = (SELECT max(n.version) {newest})"
    else:  # by the row's own number, which saves the search of an index
        wanted = "SELECT value AS model FROM json_each(?)"
        mine = f"v.rowid = (SELECT n.rowid {newest} ORDER BY n.version DESC LIMIT 1)"
    return (
        f"SELECT w.model, v.version, {text} FROM ({wanted}) w CROSS JOIN ({stages}) s"
        f" JOIN models m ON m.id = w.model JOIN versions v ON {mine}"
    )


_LATEST_POSTGRES, _LATEST_SQLITE = (_latest(postgres) for postgres in (True, False))
