"""Judging a version: evaluated on the frozen rows, compared with the champion on the same rows, gated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import Struct

from modelkeep.core.errors import Refused
from modelkeep.core.ports import Model
from modelkeep.formats import runtimes
from modelkeep.lifecycle.keep import Keep
from modelkeep.lifecycle.packages import files_of
from modelkeep.monitor import heldout
from modelkeep.monitor.heldout import HeldOut
from modelkeep.registry.models import Version
from modelkeep.spec.declaration import Declaration
from modelkeep.spec.expressions import parse_gate
from modelkeep.spec.units import seconds
from modelkeep.stats.outputs import Outputs
from modelkeep.train import gates
from modelkeep.train.compare import Comparison, compare
from modelkeep.train.evaluate import Evaluation, evaluate
from modelkeep.train.evaluate_parts import completed
from modelkeep.train.predict import CHUNK, joined, outputs
from modelkeep.train.results import GateResult
from modelkeep.train.task import truth


class Judged(Struct, frozen=True, kw_only=True):
    """What the evaluate stage remembers.

    Attributes:
        evaluation: Of the challenger.
        comparison: With the champion; None when there is none, or it cannot answer these rows.
        champion: The version compared with.
        note: Why there is no comparison although there is a champion.
        held_out: How the live metric varies between windows of these rows: what served windows are held against.
    """

    evaluation: Evaluation
    comparison: Comparison | None = None
    champion: int | None = None
    note: str = ""
    held_out: HeldOut | None = None


def judge(
    keep: Keep,
    declaration: Declaration,
    *,
    table: pa.Table,
    inputs: Sequence[str],
    pipeline: Any,
    task: str,
    classes: Sequence[bool | int | str] | None,
    metric: str,
    champion: Version | None,
    whole: Callable[[Sequence[str]], tuple[Mapping[str, float], int]] | None = None,
) -> Judged:
    """Evaluate, and compare with the champion where gates ask for it.

    Args:
        table: The frozen rows.
        inputs: The challenger's inputs.
        pipeline: The challenger.
        champion: Who serves now; None before the first.
        whole: When ``table`` is a sample: the metrics of all frozen rows, of those asked for that can be summed,
            and how many rows there are.
    """
    asked = [parse_gate(text) for text in declaration.gates]
    slices = gates.slice_columns(asked)
    target = declaration.data.target
    known = truth(table, target, task) if target else None
    said = outputs(pipeline, table, inputs, task, classes)
    evaluation = evaluate(known, said, task, table, slices, metric=metric, seed=declaration.train.seed)
    held_out = _held_out(declaration, table, known, said, evaluation.metric)
    if whole is not None and known is not None:
        evaluation = completed(evaluation, *whole(list(evaluation.metrics)))
    if champion is None or known is None:
        return Judged(evaluation=evaluation, held_out=held_out)
    try:
        before = champion_outputs(keep, champion, table, declaration.trust)
    except Refused as error:
        return Judged(evaluation=evaluation, champion=champion.version, note=error.message, held_out=held_out)
    comparison = compare(
        known,
        before,
        said,
        task,
        gates.compared_metrics(asked) or [evaluation.metric],
        table=table,
        slices=slices,
        seed=declaration.train.seed,
    )
    return Judged(evaluation=evaluation, comparison=comparison, champion=champion.version, held_out=held_out)


def gate(declaration: Declaration, judged: Judged, operational: Mapping[str, float]) -> tuple[GateResult, ...]:
    """Decide every gate.

    Raises:
        Refused: A gate compares with a champion that cannot answer these rows.
    """
    asked = [parse_gate(text) for text in declaration.gates]
    if judged.note and any(gate.champion is not None for gate in asked):
        raise Refused(
            f"champion {judged.champion} cannot be compared: {judged.note}",
            hint="drop the champion gates once, or keep its columns in the data",
        )
    return tuple(gates.check(asked, judged.evaluation, judged.comparison, operational))


def champion_outputs(keep: Keep, champion: Version, table: pa.Table, trusted: Sequence[str]) -> Outputs:
    """The champion's answers for these rows, from its own package.

    Raises:
        Refused: It needs columns that the rows no longer have.
    """
    files = files_of(keep.blobs, champion.package)
    signature = runtimes.signature(files)
    names = [field.name for field in signature.inputs]
    held = set(table.column_names)
    missing = [name for name in names if name not in held]
    if missing:
        raise Refused(f"it needs the column {missing[0]!r}, which the data no longer has")
    return answers(runtimes.load(files, trusted=trusted, threads=0), table, names, signature.classes)


def answers(model: Model, table: pa.Table, names: Sequence[str], classes: Sequence[Any]) -> Outputs:
    """What a loaded model says about the rows, which are handed to it in bounded pieces."""
    pieces = (table.slice(start, CHUNK) for start in range(0, max(1, table.num_rows), CHUNK))
    return joined([_answers(model, piece, names, classes) for piece in pieces])


def _answers(model: Model, table: pa.Table, names: Sequence[str], classes: Sequence[Any]) -> Outputs:
    said = model.predict(columns_of(table, names))
    if "prediction" in said:
        return Outputs(value=np.asarray(said["prediction"]))
    probability = said.get("probability")
    return Outputs(
        label=np.asarray(said["label"]),
        probability=None if probability is None else np.asarray(probability, float),
        classes=np.asarray(classes) if len(classes) else None,
        value=said.get("score"),
    )


def columns_of(table: pa.Table, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns as runtimes take them: numbers with NaN for missing, text with None."""
    found = {}
    for name in names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        found[name] = column.to_numpy(zero_copy_only=False)
    return found


def _held_out(declaration: Declaration, table: pa.Table, known: Any, said: Outputs, metric: str) -> HeldOut | None:
    """The live metric on the frozen rows, window by window."""
    watched = declaration.monitor.metric or metric
    if known is None or not watched:
        return None
    time = declaration.data.time
    at = None
    if time and time in table.column_names:
        micros = table.column(time).cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        at = micros.to_numpy(zero_copy_only=False) / 1e6
    return heldout.measure(
        watched, known, said, at, seconds(declaration.monitor.window), seed=declaration.train.seed
    )
