"""Registered models: numbered versions and the aliases that move over them."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from modelkeep.core.errors import NotFound
from modelkeep.registry.lineage import Lineage
from modelkeep.store.bulk import decode, encode, inserting
from modelkeep.store.tables import aliases as alias_table
from modelkeep.store.tables import models as model_table
from modelkeep.store.tables import versions as version_table


class Version(Struct, frozen=True, kw_only=True):
    """A numbered, immutable package of a model with its lineage.

    Attributes:
        model: Registered name.
        version: From 1.
        run_id: The run that made it; empty when none did.
        package: Digest of the package's tree.
        created: Seconds since 1970.
        lineage: Where it came from; None when it was registered from outside.
        metrics: Its evaluation's metrics by name.
        runtime: What runs it, as ``onnx``.
        note: Why it is as it is, for people.
        aliases: The names that point to it now.
    """

    model: str
    version: int
    run_id: str
    package: str
    created: float
    lineage: Lineage | None
    metrics: dict[str, float] = field(default_factory=dict)
    runtime: str = ""
    note: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``model@version``: how people and events name it."""
        return f"{self.model}@{self.version}"


def ensure(conn: Connection, model: str, now: float, description: str = "") -> int:
    """The row number of a registered model, making it if it is new."""
    ms = round(now * 1000)
    row = {"name": model, "description": description, "created_ms": ms, "updated_ms": ms}
    made = inserting(conn, model_table).on_conflict_do_nothing(index_elements=["name"])
    conn.execute(made, row)
    return _model_id(conn, model)


def register(
    conn: Connection,
    model: str,
    *,
    run_id: str,
    package: str,
    lineage: Lineage | None,
    evaluation: dict[str, Any],
    runtime: str,
    note: str,
    now: float,
) -> Version:
    """Add the next version of a model, making the model if it is new.

    Args:
        evaluation: JSON types; ``evaluation["metrics"]`` maps names to numbers or to maps with a ``value``.
    """
    number = ensure(conn, model, now)
    ms = round(now * 1000)
    # Updating the model's row first puts concurrent registrations in line: no two get one number.
    conn.execute(update(model_table).where(model_table.c.id == number).values(updated_ms=ms))
    highest = select(func.coalesce(func.max(version_table.c.version), 0)).where(version_table.c.model == number)
    following = int(conn.execute(highest).scalar_one()) + 1
    row = {
        "model": number,
        "version": following,
        "run_id": run_id,
        "source": f"blob:{package}" if package else "",
        "created_ms": ms,
        "updated_ms": ms,
        "package": package,
        "runtime": runtime,
        "note": note,
        "lineage": "{}" if lineage is None else encode(lineage),
        "evaluation": encode(evaluation),
    }
    conn.execute(insert(version_table), row)
    return version(conn, model, following)


def version(conn: Connection, model: str, ref: int | str) -> Version:
    """One version by number (``7``, ``"7"``) or alias. Raises ``NotFound`` naming what there is."""
    number = _model_id(conn, model)
    if isinstance(ref, str) and not ref.isdecimal():
        target = _alias(conn, number, ref)
        if target is None:
            known = ", ".join(sorted(_aliases(conn, number))) or "none"
            raise NotFound(f"model {model!r} has no alias {ref!r}; it has: {known}")
        ref = target
    if len(str(ref)) > 9:
        raise NotFound(f"model {model!r} has no version {str(ref)[:60]}")
    found = _load(conn, model, number, version_table.c.version == int(ref))
    if not found:
        raise NotFound(f"model {model!r} has no version {ref}")
    return found[0]


def versions(conn: Connection, model: str) -> list[Version]:
    """All versions, oldest first; empty when the model has none. Raises ``NotFound`` for an unknown model."""
    return _load(conn, model, _model_id(conn, model))


def models(conn: Connection) -> list[str]:
    """The names of all registered models, in order."""
    return list(conn.execute(select(model_table.c.name).order_by(model_table.c.name)).scalars())


def evaluation(conn: Connection, model: str, number: int) -> dict[str, Any]:
    """What ``register`` was given as the evaluation. Raises ``NotFound``."""
    query = select(version_table.c.evaluation).join(model_table, model_table.c.id == version_table.c.model)
    found = conn.execute(query.where(model_table.c.name == model, version_table.c.version == number)).scalar()
    if found is None:
        raise NotFound(f"model {model!r} has no version {number}")
    return dict(decode(found))


def set_alias(conn: Connection, model: str, alias: str, version: int, now: float) -> None:
    """Let an alias point to a version, moving it if it points elsewhere. Raises ``NotFound``."""
    number = _model_id(conn, model)
    exists = select(version_table.c.version).where(
        version_table.c.model == number, version_table.c.version == version
    )
    if conn.execute(exists).first() is None:
        raise NotFound(f"model {model!r} has no version {version} for alias {alias!r} to point to")
    moved = inserting(conn, alias_table)
    moved = moved.on_conflict_do_update(index_elements=["model", "alias"], set_={"version": version})
    conn.execute(moved, {"model": number, "alias": alias, "version": version})
    _touch(conn, number, now)


def delete_alias(conn: Connection, model: str, alias: str, now: float) -> None:
    """Take an alias away; no error when it is not there. Raises ``NotFound`` for an unknown model."""
    number = _model_id(conn, model)
    conn.execute(delete(alias_table).where(alias_table.c.model == number, alias_table.c.alias == alias))
    _touch(conn, number, now)


def alias(conn: Connection, model: str, alias: str) -> int | None:
    """The version an alias points to; None when model or alias is unknown."""
    query = select(alias_table.c.version).join(model_table, model_table.c.id == alias_table.c.model)
    found = conn.execute(query.where(model_table.c.name == model, alias_table.c.alias == alias)).scalar()
    return None if found is None else int(found)


def aliases(conn: Connection, model: str) -> dict[str, int]:
    """Version by alias; none of a model that is not known."""
    try:
        return _aliases(conn, _model_id(conn, model))
    except NotFound:
        return {}


def _model_id(conn: Connection, model: str) -> int:
    found = conn.execute(select(model_table.c.id).where(model_table.c.name == model)).scalar()
    if found is None:
        raise NotFound(f"there is no model {model!r}")
    return int(found)


def _alias(conn: Connection, number: int, alias: str) -> int | None:
    query = select(alias_table.c.version).where(alias_table.c.model == number, alias_table.c.alias == alias)
    return conn.execute(query).scalar()


def _aliases(conn: Connection, number: int) -> dict[str, int]:
    query = select(alias_table.c.alias, alias_table.c.version).where(alias_table.c.model == number)
    return {row.alias: row.version for row in conn.execute(query.order_by(alias_table.c.alias))}


def _load(conn: Connection, model: str, number: int, *conditions: Any) -> list[Version]:
    query = select(version_table).where(version_table.c.model == number, *conditions)
    rows = conn.execute(query.order_by(version_table.c.version)).all()
    named = _aliases(conn, number) if rows else {}
    return [_version(model, row, named) for row in rows]


def _version(model: str, row: Row[Any], named: dict[str, int]) -> Version:
    return Version(
        model=model,
        version=row.version,
        run_id=row.run_id,
        package=row.package,
        created=row.created_ms / 1000,
        lineage=None if row.lineage == "{}" else msgspec.json.decode(row.lineage, type=Lineage),
        metrics=_metrics(decode(row.evaluation)),
        runtime=row.runtime,
        note=row.note,
        aliases=tuple(name for name, target in named.items() if target == row.version),
    )


def _metrics(evaluation: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name, metric in (evaluation.get("metrics") or {}).items():
        value = metric.get("value") if isinstance(metric, dict) else metric
        found[name] = float("nan") if value is None else float(value)
    return found


def _touch(conn: Connection, number: int, now: float) -> None:
    conn.execute(update(model_table).where(model_table.c.id == number).values(updated_ms=round(now * 1000)))
