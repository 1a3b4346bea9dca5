"""What hangs on registered models and versions: tags and aliases, read for many at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection

from modelkeep.store.bulk import Query, encode, fetch_each, number_array, selecting
from modelkeep.store.tables import aliases, model_tags, version_tags


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
        self, conn: Connection, numbers: Iterable[int], versions: Iterable[tuple[int, int]] | None = None
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
            selecting(conn, "model, version, key, value", version_tags, "model", ids)
            if versions is None
            else _version_tags(conn, list(versions)),
        ]
        tags, named, told = fetch_each(conn, asked)
        for model, key, value in tags:
            self.tags.setdefault(model, []).append((key, value))
        for model, alias, version in named:
            self.aliases.setdefault(model, []).append((alias, version))
        for model, version, key, value in told:
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
