"""Legal holds: what must not be deleted or changed, with all it reaches, until it is released.

A held experiment reaches its runs, logged models and traces; a held model its versions; a held version its run,
its logged model and its snapshot; a held run its files, its traces and the logged models it made. Holding and
releasing are events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    Connection,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    insert,
    literal,
    or_,
    select,
)

from modelkeep.core.errors import Conflict, Invalid, NotFound, Problem, Refused
from modelkeep.registry import events
from modelkeep.store.hold_tables import holds
from modelkeep.store.logged_tables import logged_models
from modelkeep.store.tables import experiments, models, runs, snapshots, versions
from modelkeep.store.trace_tables import trace_links, trace_metadata, traces

Kind = Literal["run", "experiment", "model", "version", "snapshot", "trace"]
KINDS: tuple[Kind, ...] = ("run", "experiment", "model", "version", "snapshot", "trace")
_ONE = bindparam("hold", 0, BigInteger)
"""The row of the only hold that conditions look at; 0 for all."""
_SOURCE_RUN = "mlflow.sourceRun"
_NAMED = 100
"""Holds that are tried, the newest first, to name the one that refuses."""


class Hold(Struct, frozen=True):
    """One hold.

    Attributes:
        name: A run's id, an experiment's number, a model's name, ``model@version``, a snapshot's digest,
            or a trace's id.
        since: Seconds since 1970.
    """

    kind: str
    name: str
    reason: str
    actor: str
    since: float


def add(conn: Connection, kind: str, name: str, reason: str, *, now: float, actor: str = "modelkeep") -> Hold:
    """Hold something. Raises ``Invalid``, ``NotFound``: there is no such thing, ``Conflict``: it is held."""
    if not name or kind not in KINDS:
        raise Invalid([Problem("kind", f"{kind!r} cannot be held; expected one of {', '.join(KINDS)}")])
    if not _known(conn, kind, name):
        raise NotFound(f"there is no {kind} {name!r}")
    known = conn.execute(select(holds).where(holds.c.kind == kind, holds.c.name == name)).first()
    if known is not None:
        raise Conflict(f"{kind} {name!r} is held already: {known.reason or 'no reason was given'}")
    made = Hold(kind, name, reason, actor, now)
    row = {"kind": kind, "name": name, "reason": reason, "actor": actor, "since": now}
    conn.execute(insert(holds), row)
    events.append(conn, "hold.added", name, {"kind": kind, "reason": reason}, now=now, actor=actor)
    return made


def release(conn: Connection, kind: str, name: str, reason: str, *, now: float, actor: str = "modelkeep") -> None:
    """End a hold. Raises ``NotFound``: it is not held itself."""
    gone = conn.execute(delete(holds).where(holds.c.kind == kind, holds.c.name == name))
    if not gone.rowcount:
        raise NotFound(f"{kind} {name!r} is not held", hint="modelkeep hold list")
    events.append(conn, "hold.released", name, {"kind": kind, "reason": reason}, now=now, actor=actor)


def listing(conn: Connection) -> list[Hold]:
    """All holds, oldest first."""
    rows = conn.execute(select(holds).order_by(holds.c.id))
    return [Hold(row.kind, row.name, row.reason, row.actor, row.since) for row in rows]


def refuse(conn: Connection, kind: str, name: str) -> None:
    """Whether something may be deleted. Raises ``Refused`` when a hold reaches it, or something in it."""
    query = _asked(kind, name)
    if any_at_all(conn) and conn.execute(query.limit(1)).first() is not None:
        raise refusal(conn, kind, name)


def refuse_change(
    conn: Connection, kind: str, name: str, new: Mapping[str, str], kept: Iterable[tuple[str, str]]
) -> None:
    """Whether values may be set. What is new may; what is there must stay while a hold reaches it.

    Args:
        kept: Keys and values that are there.

    Raises:
        Refused: Something held would have another value.
    """
    if any_at_all(conn) and conn.execute(_asked(kind, name).limit(1)).first() is not None:
        key = changed(new, dict(kept))
        if key is not None:
            raise refusal(conn, kind, name, key)


def changed(new: Mapping[str, str], kept: Mapping[str, str]) -> str | None:
    """The first key whose value would be overwritten by another one."""
    return next((key for key, value in new.items() if kept.get(key, value) != value), None)


def refusal(conn: Connection, kind: str, name: str, key: str = "") -> Refused:
    """Why what a hold reaches stays as it is: the hold, its reason, how it ends.

    Args:
        key: What of it would change; empty when it would be deleted.
    """
    what = f"{kind} {name!r} is under legal hold, or holds something that is"
    if key:
        what = f"{key!r} cannot be changed: {kind} {name!r} is under legal hold"
    for row in conn.execute(select(holds).order_by(holds.c.id.desc()).limit(_NAMED)).all():
        if conn.execute(_asked(kind, name).limit(1), {"hold": row.id}).first() is not None:
            why = f" ({row.reason})" if row.reason else ""
            return Refused(
                f"{what}: {row.kind} {row.name!r} is held{why}",
                hint=f"'modelkeep hold remove {row.kind} {row.name}' ends the hold; it is by {row.actor}",
            )
    return Refused(what, hint="'modelkeep hold list' says by whom and why; 'modelkeep hold remove' ends a hold")


def any_at_all(conn: Connection) -> bool:
    """Whether anything is held: one look at a table that is most often empty, right for every process."""
    return conn.exec_driver_sql("SELECT 1 FROM holds LIMIT 1").first() is not None


def among_runs(conn: Connection, run_ids: Iterable[str]) -> set[str]:
    """Those of these runs that a hold reaches."""
    wanted = list(run_ids)
    if not wanted or not any_at_all(conn):
        return set()
    return set(conn.execute(select(runs.c.run_id).where(runs.c.run_id.in_(wanted), held_run())).scalars())


def _asked(kind: str, name: str) -> Any:
    """Asks for this thing if a hold reaches it, or something in it."""
    asked: dict[str, Callable[[], Any]] = {
        "run": lambda: select(runs.c.id).where(runs.c.run_id == name, held_run()),
        "experiment": lambda: select(experiments.c.id).where(_text(experiments.c.id) == name, held_experiment()),
        "logged model": lambda: select(logged_models.c.id).where(logged_models.c.model_id == name, held_logged()),
        "model": lambda: select(models.c.id).where(models.c.name == name, _held_model()),
        "model's text": lambda: select(models.c.id).where(models.c.name == name, _on_model()),
        "version": lambda: _versions().where(_name() == name, _held_version()),
        "snapshot": lambda: select(snapshots.c.id).where(snapshots.c.digest == name, _held_snapshot()),
        "trace": lambda: select(traces.c.id).where(traces.c.trace_id == name, held_trace()),
    }
    return asked[kind]()


def refuse_files(conn: Connection, kind: str, number: int) -> None:
    """Whether files of a ``run`` or logged ``model`` may be removed, by its row number. Raises ``Refused``."""
    of, name = (runs, runs.c.run_id) if kind == "run" else (logged_models, logged_models.c.model_id)
    owner = conn.execute(select(name).where(of.c.id == number)).scalar()
    if owner is not None:
        refuse(conn, "run" if kind == "run" else "logged model", owner)


def held_run() -> Any:
    """The condition that a row of ``runs`` must stay."""
    of_version = (
        _versions()
        .where(
            or_(versions.c.run_id == runs.c.run_id, versions.c.files_of == runs.c.run_id, _made_by_run()),
            or_(_on("version", _name()), _on_model()),
        )
        .correlate(runs)
    )
    return or_(_on("run", runs.c.run_id), _on("experiment", _text(runs.c.experiment)), exists(of_version))


def held_logged() -> Any:
    """The condition that a row of ``logged_models`` must stay."""
    of_version = _versions().where(_of_logged(), or_(_on("version", _name()), _on_model()))
    of_run = select(runs.c.id).where(runs.c.run_id == logged_models.c.source_run_id, _on("run", runs.c.run_id))
    return or_(
        _on("experiment", _text(logged_models.c.experiment)),
        exists(of_version.correlate(logged_models)),
        exists(of_run.correlate(logged_models)),
    )


def held_experiment() -> Any:
    """The condition that a row of ``experiments`` must stay."""
    of_runs = select(runs.c.id).where(runs.c.experiment == experiments.c.id, held_run())
    of_models = select(logged_models.c.id).where(logged_models.c.experiment == experiments.c.id, held_logged())
    of_traces = select(traces.c.id).where(traces.c.experiment == experiments.c.id, _on("trace", traces.c.trace_id))
    return or_(
        _on("experiment", _text(experiments.c.id)),
        exists(of_runs.correlate(experiments)),
        exists(of_models.correlate(experiments)),
        exists(of_traces.correlate(experiments)),
    )


def held_trace() -> Any:
    """The condition that a row of ``traces`` must stay: it, its experiment or its run is held."""
    linked = select(trace_links.c.target).where(trace_links.c.trace == traces.c.id, trace_links.c.kind == "run")
    source = select(trace_metadata.c.value).where(
        trace_metadata.c.trace == traces.c.id, trace_metadata.c.key == _SOURCE_RUN
    )
    of_run = select(runs.c.id).where(
        or_(runs.c.run_id.in_(linked.correlate(traces)), runs.c.run_id.in_(source.correlate(traces))), held_run()
    )
    return or_(
        _on("trace", traces.c.trace_id),
        _on("experiment", _text(traces.c.experiment)),
        exists(of_run.correlate(traces)),
    )


def _held_model() -> Any:
    of_version = select(versions.c.version).where(versions.c.model == models.c.id, _on("version", _name()))
    return or_(_on("model", models.c.name), exists(of_version.correlate(models)))


def _held_version() -> Any:
    return or_(_on("version", _name()), _on_model())


def _held_snapshot() -> Any:
    of_version = _versions().where(
        versions.c.lineage.contains(literal('"') + snapshots.c.digest + literal('"')), _held_version()
    )
    return or_(_on("snapshot", snapshots.c.digest), exists(of_version.correlate(snapshots)))


def _versions() -> Any:
    return select(versions.c.version).select_from(versions.join(models, models.c.id == versions.c.model))


def _made_by_run() -> Any:
    made = select(logged_models.c.id).where(_of_logged(), logged_models.c.source_run_id == runs.c.run_id)
    return exists(made.correlate(versions, runs))


def _of_logged() -> Any:
    """Whether a version was registered from a logged model, or has its files."""
    return or_(versions.c.model_id == logged_models.c.model_id, versions.c.files_of == logged_models.c.model_id)


def _on_model() -> Any:
    return _on("model", models.c.name)


def _on(kind: Kind, name: Any) -> Any:
    """Whether there is a hold of this kind on what is named by a column."""
    return exists(
        select(holds.c.id)
        .where(holds.c.kind == literal(kind), holds.c.name == name, or_(_ONE == 0, holds.c.id == _ONE))
        .correlate_except(holds)
    )


def _name() -> Any:
    return models.c.name + literal("@") + _text(versions.c.version)


def _text(column: Any) -> Any:
    return cast(column, Text)


def _known(conn: Connection, kind: str, name: str) -> bool:
    query = {
        "run": select(runs.c.id).where(runs.c.run_id == name),
        "experiment": select(experiments.c.id).where(_text(experiments.c.id) == name),
        "model": select(models.c.id).where(models.c.name == name),
        "version": _versions().where(and_(_name() == name)),
        "snapshot": select(snapshots.c.id).where(snapshots.c.digest == name),
        "trace": select(traces.c.id).where(traces.c.trace_id == name),
    }[kind]
    return conn.execute(query.limit(1)).first() is not None
