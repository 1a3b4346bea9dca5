"""Rows that may go: runs, logged models and experiments that were deleted long enough ago and nothing holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, func, or_, select

from modelkeep.registry import events, holds
from modelkeep.store.logged_tables import logged_model_artifacts, logged_models
from modelkeep.store.tables import experiments, run_artifacts, runs, versions

AT_ONCE = 200
"""Rows deleted in one transaction, each with all its metrics."""


class Tally(Struct, frozen=True):
    """How many rows of one kind, the bytes of the files they name, the first few by name."""

    count: int
    bytes: int
    examples: list[str]


class Condemned:
    """What was deleted before a moment.

    Args:
        before_ms: Milliseconds since 1970.
    """

    def __init__(self, before_ms: int) -> None:
        self.before_ms = before_ms

    def runs(self) -> Select[Any]:
        """Row numbers of runs. One that a registered version came from, or that has its files, stays."""
        return select(runs.c.id).where(self._run())

    def logged_models(self) -> Select[Any]:
        """Row numbers of logged models. One that a version was registered from, or that has its files, stays."""
        return select(logged_models.c.id).where(self._logged())

    def experiments(self) -> Select[Any]:
        """Row numbers of experiments in which nothing stays."""
        return select(experiments.c.id).where(self._experiment())

    def tallies(self, conn: Connection) -> dict[str, Tally]:
        """What would go, by kind."""
        files = run_artifacts.c.size, run_artifacts.c.run, self.runs()
        of_models = logged_model_artifacts.c.size, logged_model_artifacts.c.model, self.logged_models()
        return {
            "runs": self._tally(conn, runs.c.run_id, self._run(), files),
            "logged models": self._tally(conn, logged_models.c.model_id, self._logged(), of_models),
            "experiments": self._tally(conn, experiments.c.name, self._experiment(), None),
        }

    def delete_some(self, conn: Connection, now: float) -> int:
        """Delete some of the rows, with an event that names them; how many. They are looked at anew."""
        gone = 0
        for kind, table, name, wanted in (
            ("run", runs, runs.c.run_id, self._run()),
            ("logged_model", logged_models, logged_models.c.model_id, self._logged()),
            ("experiment", experiments, experiments.c.name, self._experiment()),
        ):
            found = conn.execute(select(table.c.id, name).where(wanted).limit(AT_ONCE - gone)).all()
            if not found:
                continue
            conn.execute(delete(table).where(table.c.id.in_([row[0] for row in found])))
            names = [row[1] for row in found]
            events.append(conn, "gc.deleted", kind, {"kind": kind, "names": names}, now=now)
            gone += len(found)
            if gone >= AT_ONCE:
                break
        return gone

    def _run(self) -> ColumnElement[bool]:
        of_version = select(versions.c.version).where(versions.c.run_id == runs.c.run_id, versions.c.run_id != "")
        return and_(
            runs.c.lifecycle_stage == "deleted",
            func.coalesce(runs.c.deleted_ms, runs.c.end_ms, runs.c.start_ms) < self.before_ms,
            ~exists(of_version.correlate(runs)),
            ~_has_files_of_version(runs.c.run_id),
            ~holds.held_run(),
        )

    def _logged(self) -> ColumnElement[bool]:
        of_version = select(versions.c.version).where(versions.c.model_id == logged_models.c.model_id)
        of_experiment = select(experiments.c.id).where(
            experiments.c.id == logged_models.c.experiment, experiments.c.lifecycle_stage == "deleted"
        )
        return and_(
            or_(logged_models.c.lifecycle_stage == "deleted", exists(of_experiment.correlate(logged_models))),
            logged_models.c.updated_ms < self.before_ms,
            ~exists(of_version.correlate(logged_models)),
            ~_has_files_of_version(logged_models.c.model_id),
            ~holds.held_logged(),
        )

    def _experiment(self) -> ColumnElement[bool]:
        staying = select(runs.c.id).where(runs.c.experiment == experiments.c.id, ~self._run())
        models = select(logged_models.c.id).where(logged_models.c.experiment == experiments.c.id, ~self._logged())
        return and_(
            experiments.c.lifecycle_stage == "deleted",
            experiments.c.updated_ms < self.before_ms,
            ~exists(staying.correlate(experiments)),
            ~exists(models.correlate(experiments)),
            ~holds.held_experiment(),
        )

    @staticmethod
    def _tally(
        conn: Connection, name: Any, wanted: ColumnElement[bool], files: tuple[Any, Any, Select[Any]] | None
    ) -> Tally:
        count = conn.execute(select(func.count()).select_from(name.table).where(wanted)).scalar_one()
        size = 0
        if files is not None and count:
            column, owner, owners = files
            size = int(
                conn.execute(select(func.coalesce(func.sum(column), 0)).where(owner.in_(owners))).scalar_one()
            )
        examples: Sequence[Any] = conn.execute(select(name).where(wanted).order_by(name).limit(20)).scalars().all()
        return Tally(int(count), size, [str(each) for each in examples])


def _has_files_of_version(name: Any) -> ColumnElement[bool]:
    """Whether a run or logged model of this id has the files of a version."""
    return exists(select(versions.c.version).where(versions.c.files_of == name).correlate(name.table))
