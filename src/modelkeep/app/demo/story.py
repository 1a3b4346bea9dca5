"""The demo: a year of real flights through the whole loop. Nothing is simulated but the passing of time.

January trains the first version. From February on every flight is predicted over HTTP in its scheduled hour, its
label is posted the day after, and each month's file joins the data when the month is over. Everything else is
what ``modelkeep up`` does by itself: windows, findings, renewals, gates, rollouts.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modelkeep.app.demo.client import Http, inference, probability_of_late
from modelkeep.app.demo.score import Month, score
from modelkeep.app.demo.view import View
from modelkeep.core.clock import FileClock
from modelkeep.core.errors import Unavailable
from modelkeep.core.ports import Model

HOUR = 3600.0
DAY = 24 * HOUR
REQUEST_ROWS = 16
"""Flights asked about in one request."""


@dataclass
class Story:
    """The state of one telling.

    Attributes:
        folder: The example's copy, where its data arrives.
        all_months: Folder with the twelve monthly files.
        control: Control server.
        serving: Serving process.
        clock: The played clock.
        alone: The January model, loaded apart.
        inputs: The model's input columns.
        view: Who watches.
    """

    folder: Path
    all_months: Path
    control: Http
    serving: Http
    clock: FileClock
    alone: Model
    inputs: tuple[str, ...]
    view: View
    sent: int = 0
    seen_event: int = 0
    to_label: list[tuple[str, int]] = field(default_factory=list)
    champions: list[int] = field(default_factory=list)

    def play(self, months: range) -> list[Month]:
        """Live through the months and return each one's score."""
        told = []
        for month in months:
            rows = pq.read_table(self.all_months / _file(month)).sort_by("scheduled_at")
            told.append(self._month(month, rows))
            self.view.month(told[-1])
            self._deliver(month)
        return told

    def _month(self, month: int, rows: pa.Table) -> Month:
        self.champions.clear()
        served = np.concatenate([self._day(day) for day in _groups(rows, DAY)])
        late = rows.column("late").to_numpy()
        columns = {name: rows.column(name).to_numpy(zero_copy_only=False) for name in self.inputs}
        alone = np.asarray(self.alone.predict(columns)["probability"])[:, 1]
        return Month(
            month=f"2013-{month:02}",
            flights=rows.num_rows,
            late=float(late.mean()),
            versions=tuple(dict.fromkeys(self.champions)),
            kept=score(late, served),
            alone=score(late, alone),
        )

    def _day(self, rows: pa.Table) -> np.ndarray:
        """Serve one day's flights hour by hour, then post the labels of the day before."""
        probabilities = []
        labels: list[tuple[str, int]] = []
        for hour in _groups(rows, HOUR):
            now = _start(hour, HOUR)
            self.clock.set(now)
            for begin in range(0, hour.num_rows, REQUEST_ROWS):
                asked = hour.slice(begin, REQUEST_ROWS)
                request = f"{datetime.fromtimestamp(now, UTC):%Y%m%d%H}-{begin}"
                answer = self.serving.call(
                    "POST", "/v2/models/flights/infer", inference(asked, self.inputs, request)
                )
                probabilities.append(probability_of_late(answer))
                self.champions.append(int(answer["model_version"]))
                late = asked.column("late").to_pylist()
                ids = [request] if len(late) == 1 else [f"{request}/{row}" for row in range(len(late))]
                labels += zip(ids, late, strict=True)
        self.sent += rows.num_rows
        self._post(self.to_label)
        self.to_label = labels
        self._settle(_start(rows, DAY) + DAY)
        return np.concatenate(probabilities)

    def _post(self, labels: list[tuple[str, int]]) -> None:
        if labels:
            body = {"labels": [{"prediction_id": name, "label": late} for name, late in labels]}
            self.control.call("POST", "/api/modelkeep/labels", body)

    def _settle(self, now: float) -> None:
        """Wait until everything sent is captured, then until the loop has seen the new time and rests."""
        self._until(lambda status: status["captured_rows"] >= self.sent)
        self.clock.set(now)
        self._until(lambda status: status["loop"]["seen"] >= now and not status["loop"]["busy"])
        self.view.day(now)
        for event in self.control.call("GET", f"/api/modelkeep/events?after={self.seen_event}")["events"]:
            self.seen_event = event["seq"]
            self.view.event(event)

    def _until(self, holds: Any, limit: float = 120.0) -> None:
        end = time.monotonic() + limit
        while not holds(status := self.control.call("GET", "/api/modelkeep/status")):
            if time.monotonic() > end:
                raise Unavailable(f"the loop did not settle in {limit:.0f} s: {status}")
            time.sleep(0.02)

    def _deliver(self, month: int) -> None:
        """The month's file, labels and all, joins the data."""
        self._post(self.to_label)
        self.to_label = []
        target = self.folder / "data" / _file(month)
        whole = target.with_suffix(".part")
        shutil.copyfile(self.all_months / _file(month), whole)
        whole.replace(target)


def example(name: str) -> Path:
    """The folder of a shipped example, in an installed package or in a checkout."""
    here = Path(sys.modules["modelkeep"].__file__ or "").parent
    for folder in (here / "examples" / name, here.parents[1] / "examples" / name):
        if folder.is_dir():
            return folder
    raise Unavailable(f"the example {name!r} is not installed")


def _file(month: int) -> str:
    return f"flights-2013-{month:02}.parquet"


def _start(rows: pa.Table, length: float) -> float:
    first = pc.min(rows.column("scheduled_at")).cast(pa.timestamp("us")).value / 1e6
    return float(first - first % length)


def _groups(rows: pa.Table, length: float) -> Iterator[pa.Table]:
    """Consecutive slices of sorted rows, one for each stretch of ``length`` seconds."""
    at = rows.column("scheduled_at").cast(pa.timestamp("us")).cast(pa.int64()).to_numpy() / 1e6
    stretch = (at // length).astype(np.int64)
    edges = [0, *(np.flatnonzero(np.diff(stretch)) + 1), len(stretch)]
    for begin, end in itertools.pairwise(edges):
        yield rows.slice(begin, end - begin)
