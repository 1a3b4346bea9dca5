"""Live performance: labels join predictions by id, windows get their metrics, and drops are told at a chosen rate.

A window's metric is compared with the version's held-out evaluation. The difference has four sources when
nothing changed: sampling of the window (bootstrap), sampling of the held-out rows (bootstrap), differences
between windows (measured on windows of the held-out rows), and the error of that measure (Student's t with
Welch and Satterthwaite's degrees of freedom). What is not covered: labels that come sooner for some rows than
for others (say, only refused applications are ever labelled) make a window's metric differ without any loss of
performance; and with no time column in the training data the differences between windows are unknown and taken
as zero, so ordinary bad days then count as drops more often than chosen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec.structs import replace
from scipy import stats
from sqlalchemy import Connection

from modelkeep.core.ports import BlobStore
from modelkeep.monitor.heldout import HeldOut
from modelkeep.monitor.policy import Policy
from modelkeep.monitor.traffic import Traffic, outputs_of, truth_of
from modelkeep.monitor.windows import tell
from modelkeep.registry import captures, findings
from modelkeep.registry.findings import Finding, Window
from modelkeep.stats.bootstrap import Estimate, intervals
from modelkeep.stats.metrics import METRICS, applicable, get
from modelkeep.stats.outputs import Array, Outputs
from modelkeep.store.database import Database

HORIZON = 60
"""Newest windows that still take labels."""
RECENT = 8
"""Judged windows that are also judged together, so that a slow loss adds up."""
GROWTH = 1.5
"""A window is judged again only when its labels grew by this factor."""
VERDICT = "verdict"


class Performance:
    """Live metrics of one home. Remembers which labels were seen, so that a call without news is cheap."""

    def __init__(self, db: Database, blobs: BlobStore) -> None:
        self._db = db
        self._blobs = blobs
        self._seen: dict[tuple[str, int], tuple[int, int]] = {}
        self._ids: OrderedDict[tuple[int, int], list[str]] = OrderedDict()

    def update(
        self,
        *,
        endpoint: str,
        version: int,
        held_out: HeldOut | None,
        policy: Policy,
        now: float,
        classes: Sequence[Any] = (),
    ) -> list[Finding]:
        """Evaluate the windows that got labels since the last call; tell drops.

        Args:
            held_out: What the metric was at evaluation; None gives metrics without verdicts.
            classes: The model's classes in the order of its probabilities.

        Returns:
            The findings recorded now.
        """
        with self._db.read() as conn:
            known = self._open(conn, endpoint, version)
            news = (captures.label_generation(conn), max((window.id for window in known), default=0))
            if self._seen.get((endpoint, version)) == news:
                return []
            fresh = [window for window in known if self._labelled(conn, window) > window.labels]
        metric = policy.metric or (held_out.metric if held_out else "")
        changed = [self._evaluate(window, metric, classes) for window in fresh]
        found = self._judge(known, changed, metric, held_out, policy, now)
        self._seen[(endpoint, version)] = news
        return found

    def _open(self, conn: Connection, endpoint: str, version: int) -> list[Window]:
        newest = findings.windows(conn, endpoint, version=version, limit=HORIZON)
        return [window for window in newest if window.rows]

    def _labelled(self, conn: Connection, window: Window) -> int:
        if window.labels >= window.rows:
            return window.labels
        key = (window.id, window.rows)
        if key not in self._ids:
            rows = self._rows(conn, window, ["prediction_id", "time"])
            self._ids[key] = [] if rows is None else rows.column("prediction_id").to_pylist()
            while len(self._ids) > 4 * HORIZON:
                self._ids.popitem(last=False)
        return len(captures.labels_for(conn, self._ids[key]))

    def _rows(self, conn: Connection, window: Window, columns: list[str]) -> pa.Table | None:
        parts = captures.between(conn, window.endpoint, window.start, window.end, window.version)
        own = [part for part in parts if part.mode == window.mode]
        return Traffic(self._blobs, columns).between(own, window.start, window.end)

    def _evaluate(self, window: Window, metric: str, classes: Sequence[Any]) -> tuple[Window, Estimate | None]:
        wanted = ["prediction_id", "time", "out.label", "out.probability", "out.prediction"]
        with self._db.read() as conn:
            rows = self._rows(conn, window, wanted)
            labels = captures.labels_for(conn, [] if rows is None else rows.column("prediction_id").to_pylist())
        if rows is None:
            return window, None
        ids = rows.column("prediction_id").to_pylist()
        place = [index for index, one in enumerate(ids) if one in labels]
        y, usable = truth_of([labels[ids[index]] for index in place], "out.prediction" in rows.column_names)
        outputs = outputs_of(rows.take(pa.array(np.array(place, dtype=np.int64)[usable])), classes)
        measured = _measure(y, outputs, metric)
        shown = {
            name: {"value": one.value, "low": one.low, "high": one.high, "rows": one.rows}
            for name, one in measured.items()
            if np.isfinite(one.value)
        }
        window = replace(window, labels=len(place), metrics={**window.metrics, **shown})
        return window, measured.get(metric) or next(iter(measured.values()), None)

    def _judge(
        self,
        known: list[Window],
        changed: list[tuple[Window, Estimate | None]],
        metric: str,
        held_out: HeldOut | None,
        policy: Policy,
        now: float,
    ) -> list[Finding]:
        recent = {window.id: window for window in known if window.mode == "stable"}
        results: list[tuple[Window, dict[str, Any] | None]] = []
        for window, estimate in changed:
            evidence = None
            if estimate is not None and held_out is not None and held_out.metric == metric:
                window, evidence = judge(window, estimate, list(recent.values()), held_out, policy)
            if window.id in recent:
                recent[window.id] = window
            results.append((window, evidence))
        if not results:
            return []

        def record(conn: Connection) -> list[Finding]:
            made = []
            for window, evidence in results:
                findings.put_window(conn, window)
                if evidence is not None:
                    made.append(tell(conn, window, "performance_drop", evidence, now))
            return [one for one in made if one is not None]

        return self._db.write(record)


def judge(
    window: Window, estimate: Estimate, recent: Sequence[Window], held_out: HeldOut, policy: Policy
) -> tuple[Window, dict[str, Any] | None]:
    """Whether the window, or it with the judged ones just before it, is worse than the evaluation.

    Both are tested at half the chosen rate. A window may be judged several times while its labels arrive: the k-th
    time at the rate / 2^k, which adds up to at most the chosen rate; it waits until labels grew by half.

    Returns:
        The window with its verdict, and the evidence if there is a drop.
    """
    before = window.metrics.get(VERDICT) or {}
    labels, looks = int(before.get("labels", 0)), int(before.get("looks", 0))
    ready = window.labels >= policy.min_labels and np.isfinite(estimate.error)
    if window.mode != "stable" or not ready or window.labels < GROWTH * labels:
        return window, None
    now = (estimate.value, estimate.error, float(window.labels))
    past = [
        (w.metrics[VERDICT]["value"], w.metrics[VERDICT]["error"], float(w.metrics[VERDICT]["labels"]))
        for w in recent
        if VERDICT in w.metrics and w.start < window.start
    ][1 - RECENT :]
    alone = drop_p([now], held_out)
    together = drop_p([*past, now], held_out) if past else 1.0
    p = min(1.0, 2 * min(alone, together))
    verdict = {"value": now[0], "error": now[1], "labels": window.labels, "looks": looks + 1, "p": p}
    window = replace(window, metrics={**window.metrics, VERDICT: verdict})
    if p > policy.false_alarms / 2 ** (looks + 1):
        return window, None
    several = f" (with the {len(past)} windows before it)" if together < alone else ""
    text = (
        f"{held_out.metric} was {held_out.value:.4g} at evaluation and is {estimate.value:.4g} "
        f"on {window.labels} labelled predictions{several}"
    )
    return window, {
        "text": text,
        "metric": held_out.metric,
        "expected": held_out.value,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "labels": window.labels,
        "p": p,
        "false_alarms": policy.false_alarms,
    }


def drop_p(windows: Sequence[tuple[float, float, float]], held_out: HeldOut) -> float:
    """Chance of metrics as bad as these when nothing changed (see the module).

    Args:
        windows: Value, standard error and labels of each window; joined in proportion to their labels.
    """
    values, errors, labels = np.array(windows, dtype=np.float64).T
    share = labels / labels.sum()
    sign = 1.0 if get(held_out.metric).higher_is_better else -1.0
    drop = sign * (held_out.value - float(share @ values))
    sampling = float(share**2 @ errors**2) + held_out.error**2
    measured = held_out.windows >= 3
    own = held_out.between * (float(share @ share) + (1 / held_out.windows if measured else 0.0))
    variance = sampling + own
    if variance <= 0:
        return 1.0 if drop <= 0 else 0.0
    known = max(labels.sum() - 1, 1.0)
    freedom = variance**2 / (sampling**2 / known + (own**2 / (held_out.windows - 1) if measured else 0.0))
    return float(stats.t.sf(drop / np.sqrt(variance), freedom))


def _measure(y: Array, outputs: Outputs, metric: str) -> dict[str, Estimate]:
    task = "regression" if outputs.value is not None else "classification"
    possible = applicable(task, outputs)
    usual = ["rmse", "mae"] if task == "regression" else ["accuracy"]
    wanted = [metric] if metric in METRICS and METRICS[metric].task == task else []
    names = [name for name in dict.fromkeys([*wanted, *usual]) if name in possible or name in wanted]
    if METRICS_NEED_PROBABILITY.intersection(names) and outputs.probability is None:
        names = [name for name in names if name not in METRICS_NEED_PROBABILITY]
    return intervals(names, y, outputs) if len(y) and names else {}


METRICS_NEED_PROBABILITY = {name for name, metric in METRICS.items() if metric.needs == "probability"}
