"""Make a new version and prove it: prepare, train, evaluate, package, gate, register.

Apart from ``apply``, which needs none of it when the version is there: this brings all that trains.
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
from sqlalchemy import Connection

from modelkeep.core import digests
from modelkeep.core.errors import Invalid, ModelkeepError, Refused, UserCodeFailed
from modelkeep.data import columns
from modelkeep.lifecycle import code
from modelkeep.lifecycle import made as made_of
from modelkeep.lifecycle.judging import Judged, gate, judge
from modelkeep.lifecycle.made import Made
from modelkeep.lifecycle.making import Making
from modelkeep.lifecycle.packaging import Packaged, latencies, pack
from modelkeep.registry import events, models, runs, snapshots
from modelkeep.registry.lineage import Lineage
from modelkeep.registry.models import Version
from modelkeep.spec import loading
from modelkeep.train.results import GateResult


def prove(making: Making, champion: Version | None, actor: str, *, withdraw: bool) -> Made:
    """Make the version and register it if its gates pass; else keep why not.

    Args:
        champion: What it must be better than.
        actor: Who, for the history.
        withdraw: Whether a snapshot that cannot be prepared is forgotten again.

    Raises:
        Invalid, Refused, UserCodeFailed: The data or the model cannot be used; every problem is named.
    """
    _prepared(making, withdraw=withdraw)
    inputs: dict[str, columns.Kind] = dict.fromkeys(making.prepared.inputs, "other")
    columns.resolve(making.declaration.deploy.in_range, inputs, "deploy.in_range")  # told before training
    keep, trained = making.keep, making.trained
    try:
        return _proved(making, champion, actor)
    except BaseException:
        now = keep.clock.now()
        with contextlib.suppress(ModelkeepError):  # on a full disk the next apply closes it
            keep.db.write(lambda conn: runs.end(conn, trained.run_id, "FAILED", now))
        raise


def _prepared(making: Making, *, withdraw: bool) -> None:
    """The prepare stage. Rows that cannot be prepared leave no snapshot: checks are inferred from it."""
    keep, taken = making.keep, making.snapshot
    try:
        _ = making.prepared
    except (Invalid, Refused, UserCodeFailed):
        if withdraw:
            keep.db.write(lambda conn: snapshots.withdraw(conn, taken.name, taken.digest))
        raise


def _proved(making: Making, champion: Version | None, actor: str) -> Made:
    keep, declaration, teller, trained = making.keep, making.declaration, making.teller, making.trained
    judged = making.stage(
        "evaluate",
        made_of.compared(making.keys, champion),
        Judged,
        lambda: judge(
            keep,
            declaration,
            table=making.test_table,
            inputs=making.prepared.inputs,
            pipeline=making.pipeline,
            task=trained.task,
            classes=trained.classes,
            metric=trained.metric,
            champion=champion,
            whole=making.whole_metrics if making.sampled else None,
        ),
    )
    with teller.stage("package", "make what will be served"):
        packaged = pack(keep, declaration, making, judged)
    with teller.stage("gate", f"{len(declaration.gates)} gates"):
        operational = latencies(packaged, making)
        decided = gate(declaration, judged, operational)
    with teller.stage("register", "keep the version and its lineage"):
        return _register(making, judged, packaged, decided, champion, actor)


def _register(
    making: Making,
    judged: Judged,
    packaged: Packaged,
    decided: tuple[GateResult, ...],
    champion: Version | None,
    actor: str,
) -> Made:
    keep, declaration, trained = making.keep, making.declaration, making.trained
    now = keep.clock.now()
    metrics = {name: interval.value for name, interval in judged.evaluation.metrics.items()}
    passed = all(result.passed for result in decided)
    said = loading.to_builtins(declaration)
    lineage = Lineage(
        snapshot=making.snapshot.digest,
        declaration=digests.of_value(said),
        declaration_text=loading.dump(declaration),
        code=code.here(keep.base, keep.blobs),
        environment=packaged.environment,
        params=trained.params,
        seed=declaration.train.seed,
        parent=champion.version if champion else None,
        extra={"key": making.keys.version, "train": making.prepared.train, "test": making.prepared.test},
    )
    evidence: dict[str, Any] = {
        "evaluation": msgspec.to_builtins(judged.evaluation),
        "comparison": msgspec.to_builtins(judged.comparison),
        "gates": msgspec.to_builtins(decided),
        "metrics": metrics,
        "tried": trained.tried,
    }
    package = packaged.keep(keep.blobs, judged, decided) if passed else ""

    def register(conn: Connection) -> Made:
        number = None
        if passed:
            version = models.register(
                conn,
                declaration.model,
                run_id=trained.run_id,
                package=package,
                lineage=lineage,
                evaluation=evidence,
                runtime=packaged.runtime,
                note=packaged.note,
                now=now,
            )
            number = version.version
        made = Made(version=number, gates=decided, metrics=metrics, run_id=trained.run_id)
        failed = [result.gate for result in decided if not result.passed]
        told = {"because": making.because, "gates": [result.evidence for result in decided], "failed": failed}
        subject = f"{declaration.model}@{number}" if number else declaration.model
        kind = "version.registered" if passed else "version.refused"
        events.append(conn, kind, subject, told | {"metrics": metrics}, now=now, actor=actor)
        _finish_run(conn, trained.run_id, judged, passed, now)
        made_of.remember(conn, making.keys, champion, declaration.model, made, now)
        return made

    return keep.db.write(register)


def _finish_run(conn: Connection, run_id: str, judged: Judged, passed: bool, now: float) -> None:
    stamp = int(now * 1000)
    points = [
        (name, interval.value, stamp, 0)
        for name, interval in judged.evaluation.metrics.items()
        if interval.value is not None
    ]
    runs.log(conn, run_id, metrics=points, tags={"modelkeep.gates": "passed" if passed else "refused"})
    runs.end(conn, run_id, "FINISHED", now)
