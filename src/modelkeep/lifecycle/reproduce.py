"""``reproduce``: run a version again from its digests, and say whether the result is the same."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from modelkeep.core.errors import NotFound
from modelkeep.core.ports import Progress, Silent
from modelkeep.data.prepare import prepare
from modelkeep.data.snapshots import Snapshots
from modelkeep.formats import environment, runtimes
from modelkeep.lifecycle.ask import split_ref
from modelkeep.lifecycle.judging import answers
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.packages import files_of
from modelkeep.registry import models
from modelkeep.spec import loading
from modelkeep.stats.outputs import Outputs
from modelkeep.train.evaluate import evaluate
from modelkeep.train.fit import fit
from modelkeep.train.predict import outputs
from modelkeep.train.task import truth

TOLERANCE = 1e-6
"""Largest difference of predictions that counts as equal: the packaged graph computes in single precision."""


class Reproduced(Struct, frozen=True, kw_only=True):
    """How a second making compares with the first.

    Attributes:
        version: ``model@version``.
        metrics: By name: (first, second).
        metrics_equal: Whether all are, to 1e-6.
        predictions_equal: Whether all predictions on the frozen rows are, to 1e-5.
        largest_difference: Of any predicted number.
        rows: How many rows were predicted.
        note: How this environment differs from the first; empty when it does not.
    """

    version: str
    metrics: dict[str, tuple[float | None, float | None]]
    metrics_equal: bool
    predictions_equal: bool
    largest_difference: float
    rows: int
    note: str


def reproduce(keep: Keep, ref: str, progress: Progress | None = None) -> Reproduced:
    """Snapshot, preparation, training and evaluation again, from what the version's lineage names. Keeps nothing.

    Raises:
        NotFound: The version, or something it came from, is gone.
    """
    progress = progress or Silent()
    with keep.db.read() as conn:
        version = models.version(conn, *split_ref(ref))
        first = models.evaluation(conn, version.model, version.version)
    lineage = version.lineage
    if lineage is None:
        raise NotFound(f"{version.name} was registered from outside: where it came from is not known")
    declaration = loading.load_text(lineage.declaration_text)
    snapshots = Snapshots(keep.db, keep.blobs)
    snapshot = snapshots.get(lineage.snapshot)
    checks = snapshots.checks(snapshot, declaration.data)
    progress.step("prepare", 0, 1, "the same rows")
    prepared = prepare(
        declaration, snapshots.scan(snapshot), checks, progress, base=keep.base, now=version.created
    )
    target = declaration.data.target
    again = fit(
        declaration.train,
        prepared.train,
        target,
        prepared.inputs,
        prepared.features.to_sklearn(),
        base=keep.base,
        progress=progress,
    )
    progress.step("evaluate", 0, 1, "the same frozen rows")
    said = outputs(again.pipeline, prepared.test, prepared.inputs, again.task, again.classes)
    known = truth(prepared.test, target, again.task) if target else None
    second = evaluate(known, said, again.task, metric=again.metric, seed=declaration.train.seed)
    files = files_of(keep.blobs, version.package)
    model = runtimes.load(files, trusted=declaration.trust, threads=0)
    names = [field.name for field in runtimes.signature(files).inputs]
    before = answers(model, prepared.test, names, again.classes or ())
    metrics = {name: (first["metrics"].get(name), interval.value) for name, interval in second.metrics.items()}
    largest = _difference(before, said)
    return Reproduced(
        version=version.name,
        metrics=metrics,
        metrics_equal=all(_equal(*pair) for pair in metrics.values()),
        predictions_equal=largest <= TOLERANCE * 10,
        largest_difference=largest,
        rows=prepared.test.num_rows,
        note=changed_packages(_text(keep, lineage.environment), environment.lock()),
    )


def changed_packages(before: str, now: str) -> str:
    """How two environment locks differ, as a sentence; empty when they do not, or the first is not known."""
    if not before or before == now:
        return ""
    first, second = (dict(line.split("==", 1) for line in lock.splitlines()) for lock in (before, now))
    changed = [
        f"{name} {first.get(name, 'absent')} -> {second.get(name, 'absent')}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    return f"the environment differs: {', '.join(changed[:5])}{more}"


def _text(keep: Keep, digest: str) -> str:
    if not digest:
        return ""
    with keep.blobs.open(digest) as stream:
        return stream.read().decode()


def _equal(one: float | None, two: float | None) -> bool:
    if one is None or two is None:
        return one is two
    return abs(one - two) <= TOLERANCE * max(1.0, abs(one))


def _difference(one: Outputs, two: Outputs) -> float:
    for name in ("probability", "value"):
        a, b = getattr(one, name), getattr(two, name)
        if a is not None and b is not None:
            return float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float)), initial=0.0))
    assert one.label is not None and two.label is not None
    return float(np.mean(np.asarray(one.label) != np.asarray(two.label)))
