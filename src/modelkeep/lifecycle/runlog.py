"""A run of the registry as training's log: points gather and are written together, at most a second late."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from modelkeep.core.clock import Clock
from modelkeep.registry import runs
from modelkeep.store.database import Database

Point = tuple[str, float, int, int]
HOLD = 1.0
"""Seconds a point may wait for company."""


class RegistryLog:
    """Writes one run and starts its children.

    Args:
        db: Where runs are kept.
        clock: What time it is.
        experiment: The experiment's id.
        name: The run's name.
        parent: The run this one is a child of.
        tags: What the run carries from the start.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        experiment: int,
        name: str,
        *,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._experiment = experiment
        self._points: list[Point] = []
        self._flushed = time.monotonic()
        now = clock.now()
        given = dict(tags or {})
        self.run_id: str = db.write(
            lambda conn: runs.create(conn, experiment, name, now, tags=given, parent=parent)
        )

    def params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, values as they are."""
        texts = {key: str(value) for key, value in params.items()}
        self._db.write(lambda conn: runs.log(conn, self.run_id, params=texts))

    def metric(self, key: str, value: float, step: int = 0) -> None:
        """Record one value of a metric at a step."""
        self._points.append((key, float(value), int(self._clock.now() * 1000), step))
        if time.monotonic() - self._flushed > HOLD:
            self.flush()

    def flush(self) -> None:
        """Make every point so far durable."""
        points, self._points = self._points, []
        self._flushed = time.monotonic()
        if points:
            self._db.write(lambda conn: runs.log(conn, self.run_id, metrics=points))

    def child(self, name: str) -> RegistryLog:
        """Start a run under this one."""
        return RegistryLog(self._db, self._clock, self._experiment, name, parent=self.run_id)

    def end(self, status: str = "FINISHED") -> None:
        """Close this run."""
        self.flush()
        now = self._clock.now()
        self._db.write(lambda conn: runs.end(conn, self.run_id, status, now))
