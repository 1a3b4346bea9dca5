"""``prepare``: a snapshot's rows cleaned, checked, divided, and the feature steps fitted on the training side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core import clock
from modelkeep.core.errors import Invalid, Refused
from modelkeep.core.ports import Progress, Silent
from modelkeep.data import columns as kinds_of
from modelkeep.data import features, split
from modelkeep.data.checks import Expected, check_rows, check_source
from modelkeep.data.clean import REASON, StepReport, clean
from modelkeep.data.features import FittedFeatures
from modelkeep.spec.declaration import Declaration


@dataclass(frozen=True)
class Prepared:
    """Rows ready to train on.

    Attributes:
        train: Training rows: inputs, target, key, time and every other column that is not excluded.
        test: The rows kept for evaluation, with the same columns.
        quarantine: Rows set aside, with their ``reason``.
        target: Its column; empty without one.
        inputs: The model's input columns, in order.
        features: The fitted steps.
        reports: What each cleaning step and the checks did.
    """

    train: pa.Table
    test: pa.Table
    quarantine: pa.Table
    target: str
    inputs: list[str]
    features: FittedFeatures
    reports: list[StepReport]


def prepare(
    declaration: Declaration,
    table: pa.Table,
    checks: Expected | None = None,
    progress: Progress | None = None,
    *,
    base: Path = Path(),
    now: float | None = None,
) -> Prepared:
    """Clean, check, divide and fit.

    Args:
        declaration: What is asked for.
        table: A snapshot's rows.
        checks: What must hold (``Snapshots.checks``); None checks only what is declared.
        progress: Told where the work stands.
        base: The declaration's folder, for the user's functions.
        now: Seconds since 1970, for freshness; the process's clock unless given.

    Raises:
        Invalid: The declaration does not fit the columns; the target is missing, constant or of one class.
        Refused: The data fail their checks, or too many rows do.
        UserCodeFailed: A function of the user's raised.
    """
    progress = progress or Silent()
    data = declaration.data
    expected = checks or Expected(checks=data.checks)
    progress.step("prepare", 0, 4, "clean")
    raw_names = {name for name in (data.target, data.time, *declaration.keys) if name}
    check_source(expected, table, data.time)
    cleaned = clean(data.clean, table, data.time, progress)
    _must_exist(declaration, cleaned.table, raw_names)
    present = cleaned.table.drop_columns([name for name in data.exclude if name in cleaned.table.column_names])
    inputs = kinds_of.inputs(declaration, present)
    if not inputs:
        raise Invalid("no column is left for the model to see", path="data.exclude")
    progress.step("prepare", 1, 4, "check")
    moment = clock.from_environment().now() if now is None else now
    checked = check_rows(_renamed(expected, cleaned.renamed), declaration, present, inputs, moment)
    quarantine = _together([*cleaned.aside, checked.failed])
    _must_be_few(quarantine, table.num_rows, data.checks.quarantine)
    _must_vary(checked.table, data.target)
    progress.step("prepare", 2, 4, "split")
    aside = split.test_rows(checked.table, data.split, declaration.keys, data.time, declaration.train.seed)
    train, test = checked.table.filter(pa.array(~aside)), checked.table.filter(pa.array(aside))
    _must_vary(train, data.target)
    progress.step("prepare", 3, 4, "features")
    fitted = features.fit(declaration.features, train, inputs, base=base)
    progress.step("prepare", 4, 4)
    return Prepared(
        train=train,
        test=test,
        quarantine=quarantine,
        target=data.target,
        inputs=inputs,
        features=fitted,
        reports=[*cleaned.reports, checked.report],
    )


def _must_exist(declaration: Declaration, table: pa.Table, names: set[str]) -> None:
    data = declaration.data
    for name in sorted(names):
        if name not in table.column_names:
            path = "data.target" if name == data.target else "data.time" if name == data.time else "data.key"
            raise kinds_of.unknown_column(name, table.column_names, path)
    if data.target and data.target in (data.time, *declaration.keys):
        raise Invalid(f"{data.target!r} cannot be the target and the key or time at once", path="data.target")


def _must_vary(table: pa.Table, target: str) -> None:
    """Refuse a target that holds one value only: there is nothing to learn."""
    if not target or not table.num_rows:
        return
    values = pc.unique(table.column(target))
    if len(values) == 1:
        raise Invalid(
            f"the target {target!r} is {values[0].as_py()!r} in all {table.num_rows} rows: nothing to learn",
            path="data.target",
            hint="check the source and the filters under data.clean, or choose another target",
        )


def _must_be_few(quarantine: pa.Table, rows: int, share: float) -> None:
    if quarantine.num_rows <= share * rows:
        return
    counts = Counter(quarantine.column(REASON).to_pylist())
    shown = [f"{count} rows: {reason}" for reason, count in counts.most_common(5)]
    shown += [f"for example {row}" for row in quarantine.slice(0, 3).to_pylist()]
    raise Refused(
        f"{quarantine.num_rows} of {rows} rows fail the data checks, at most {share:.1%} may "
        "(data.checks.quarantine):\n  " + "\n  ".join(shown),
        hint="correct the source, clean the rows under data.clean, or say under data.checks.columns what may be",
    )


def _renamed(expected: Expected, renamed: dict[str, str]) -> Expected:
    """The same checks by the columns' names after cleaning."""
    if not renamed:
        return expected
    columns = {renamed.get(name, name): check for name, check in expected.checks.columns.items()}
    seen = {renamed.get(name, name): names for name, names in expected.seen.items()}
    checks = msgspec.structs.replace(expected.checks, columns=columns)
    return msgspec.structs.replace(expected, checks=checks, seen=seen)


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of all rows; a column whose types differ becomes text, a column some lack is null there."""
    tables = [table for table in tables if table.num_rows] or list(tables[-1:])
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, found in kinds.items() if len(found) > 1}
    made = []
    for table in tables:
        for name in mixed & set(table.column_names):
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table.column(name).cast(pa.string()))
        made.append(table)
    return pa.concat_tables(made, promote_options="default")
