"""What the loop sees: captured traffic taken in, windows closed, and a rollout's traffic judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pyarrow.compute as pc

from modelkeep.formats import runtimes
from modelkeep.lifecycle.decide import Underway
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.packages import files_of
from modelkeep.monitor import ingest, reference, windows
from modelkeep.monitor.performance import Performance
from modelkeep.monitor.policy import policy
from modelkeep.monitor.reference import Reference
from modelkeep.registry import captures
from modelkeep.registry.captures import Capture
from modelkeep.registry.endpoints import Wanted
from modelkeep.spec.declaration import Declaration
from modelkeep.spec.expressions import Condition, parse_condition
from modelkeep.stats import sequential

ABORT_ALPHA = 0.001
"""Chance that a rollout which keeps its promises is ever ended by one of its abort conditions."""

_TAIL = {"latency_ms.p50": 0.50, "latency_ms.p95": 0.05, "latency_ms.p99": 0.01}


@dataclass(frozen=True, slots=True)
class _Trained:
    """What a version's package says about its training."""

    reference: Reference | None
    classes: tuple[bool | int | float | str, ...]


class Watch:
    """The eyes of one home.

    Args:
        keep: The home.
    """

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self._slow = lru_cache(maxsize=4096)(self._count_slow)
        self._trained = lru_cache(maxsize=64)(self._read_trained)
        self._performance = Performance(keep.db, keep.blobs)

    def take_in(self) -> None:
        """Take in what serving captured since the last time."""
        ingest.take_in(self.keep.home / "capture", self.keep.db, self.keep.blobs)

    def close_windows(self, wanted: Wanted, declaration: Declaration, now: float) -> None:
        """Close the windows that are over, tell drift, join labels, tell drops: for every version with traffic."""
        rules = policy(declaration)
        for route in wanted.routes:
            held = self._trained(route.package)
            windows.close_due(
                self.keep.db,
                self.keep.blobs,
                endpoint=wanted.endpoint,
                model=wanted.model,
                version=route.version,
                reference=held.reference,
                policy=rules,
                now=now,
                classes=held.classes,
            )
            self._performance.update(
                endpoint=wanted.endpoint,
                version=route.version,
                held_out=held.reference.held_out if held.reference else None,
                policy=rules,
                now=now,
                classes=held.classes,
            )

    def underway(self, wanted: Wanted, declaration: Declaration) -> Underway | None:
        """The rollout of an endpoint with what its traffic shows; None when there is none.

        Conditions are tested at every look, so they use tests that stay valid however often one looks.
        """
        rollout = wanted.rollout
        if rollout is None:
            return None
        with self.keep.db.read() as conn:
            everyone = captures.between(conn, wanted.endpoint, rollout.started, float("inf"))
        parts = [part for part in everyone if part.version == rollout.version]
        # Part times are whole parts: the one during which the rollout began also holds nothing older of it,
        # because the version had no traffic before.
        conditions = [parse_condition(text) for text in declaration.deploy.abort]
        violated = [said for condition in conditions if (said := self._violated(condition, parts))]
        return Underway(
            version=rollout.version,
            step=rollout.step,
            since=rollout.since,
            violations=tuple(violated),
            requests=sum(part.rows for part in parts if part.end >= rollout.since),
            around=sum(part.rows for part in everyone if part.end >= rollout.since and part.mode != "shadow"),
        )

    def _violated(self, condition: Condition, parts: list[Capture]) -> str:
        rows = sum(part.rows for part in parts)
        errors = sum(part.errors for part in parts)
        if condition.quantity == "error_rate":
            total, bad, share = rows + errors, errors, condition.bound
            what = "error_rate"
        else:
            # p99 > 50 ms says: more than 1 % of the requests take longer than 50 ms.
            share = _TAIL[condition.quantity]
            total, bad = rows, sum(self._slow(part.digest, condition.bound) for part in parts if part.digest)
            what = f"share slower than {condition.bound:g} ms"
        if total == 0 or not sequential.exceeds(bad, total, share, alpha=ABORT_ALPHA):
            return ""
        return f"{condition.text}: {what} is {bad / total:.2%} ({bad} of {total}), more than {share:.2%}"

    def _read_trained(self, package: str) -> _Trained:
        files = files_of(self.keep.blobs, package)
        known = reference.load(files[reference.FILE]) if reference.FILE in files else None
        return _Trained(known, runtimes.signature(files).classes)

    def _count_slow(self, digest: str, bound: float) -> int:
        part = Capture(endpoint="", version=0, mode="", start=0.0, end=0.0, rows=0, digest=digest)
        latency = ingest.rows_of(self.keep.blobs, part, ["latency_ms"]).column("latency_ms")
        return int(pc.sum(pc.greater(latency, bound)).as_py() or 0)
