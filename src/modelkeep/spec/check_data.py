"""What the types of ``data`` and ``features`` cannot say."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from modelkeep.spec import steps
from modelkeep.spec.declaration import Checks, Data, Declaration, Origin
from modelkeep.spec.filters import parse_filter
from modelkeep.spec.names import CAST_TYPES, COLUMN_GROUPS, COLUMN_TYPES, DATE_PARTS, unknown
from modelkeep.spec.nodes import child
from modelkeep.spec.report import Report
from modelkeep.spec.units import seconds

_INF = float("inf")
_LIMITS = {"zscore": (0.0, _INF), "iqr": (0.0, _INF), "quantile": (0.0, 0.5), "isolation_forest": (0.0, 0.5)}


def check_data(declaration: Declaration, report: Report) -> None:
    """The source, the roles of columns, cleaning, the split and the checks."""
    data = declaration.data
    _source(data, report)
    _roles(declaration, report)
    for index, step in enumerate(data.clean):
        _clean(step, child("data.clean", index), data, report)
    report.between("data.split.test", data.split.test, 0, 1, open_ends=True)
    if data.split.by == "time" and not data.time:
        report.add("data.split.by", "'time' needs data.time, the column that orders the rows")
    if data.partition is not None:
        if not data.partition.columns:
            report.add("data.partition.columns", "missing; expected the columns to cut by")
        report.between("data.partition.parts", data.partition.parts, 1, 100_000)
    _checks(data.checks, data, report)


def _source(data: Data, report: Report) -> None:
    source = data.source
    if isinstance(source, str):
        if not source.strip():
            report.add("data.source", "empty; expected a file, folder, glob or URL, a query, or a function")
        return
    _origin(source, report)


def _origin(source: Origin, report: Report) -> None:
    if source.function and (source.url or source.query):
        report.add("data.source", "found both a function and a query; expected one of them")
    elif source.function:
        check_import_path("data.source.function", source.function, report)
    elif not source.url and not source.query:
        report.add("data.source", "expected either url and query, or function")
    elif not source.url:
        report.add("data.source", "query needs url, the database to ask")
    elif not source.query:
        report.add("data.source", "url needs query, the SELECT to run there")
    if source.params and not source.function:
        report.add("data.source.params", "only a function takes params")


def _roles(declaration: Declaration, report: Report) -> None:
    data = declaration.data
    report.unique("data.key", declaration.keys)
    report.unique("data.exclude", data.exclude)
    if data.target:
        if data.target in declaration.keys:
            report.add("data.key", f"{data.target!r} is the target; what is predicted cannot identify a row")
        if data.target == data.time:
            report.add("data.time", f"{data.time!r} is the target; what is predicted cannot order the rows")
        if data.target in data.exclude:
            report.add("data.exclude", f"{data.target!r} is the target; it is never a feature by itself")
    for path, name in _columns(declaration):
        if name == data.target and name:
            report.add(path, f"{name!r} is the target; a model must not see what it predicts")
        elif name in data.exclude:
            report.add(path, f"{name!r} is excluded by data.exclude")


def _columns(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """Path and name of every column a feature step names."""
    for index, step in enumerate(declaration.features):
        columns = step.columns
        path = child(child("features", index), f"{_name(step)}.columns")
        if not isinstance(columns, str):
            yield from ((child(path, place), name) for place, name in enumerate(columns))


def _name(step: Struct) -> str:
    return str(step.__struct_config__.tag)


def check_import_path(path: str, reference: str, report: Report) -> None:
    """``package.module:name`` or ``package.module.Name``; whether it exists is known only when it is imported."""
    module, _, name = reference.partition(":") if ":" in reference else reference.rpartition(".")
    parts = [*module.split("."), *name.split(".")]
    if not module or not all(part.isidentifier() for part in parts):
        report.add(path, f"{reference!r} is not an import path; expected 'package.module:name'")


def _group(path: str, columns: steps.Columns, report: Report) -> None:
    """Columns are named in a list; a bare text is a group."""
    if isinstance(columns, str):
        if columns not in COLUMN_GROUPS:
            said = unknown(columns, COLUMN_GROUPS, "a group of columns")
            report.add(path, f"{said}; for one column write [{columns}]")
    elif not columns:
        report.add(path, "no columns; name at least one, or a group such as numeric")
    else:
        report.unique(path, columns)


def _clean(step: steps.CleanStep, path: str, data: Data, report: Report) -> None:
    path = child(path, _name(step))
    columns = child(path, "columns")
    match step:
        case steps.DropDuplicates() | steps.DropMissing():
            report.unique(columns, step.columns)
        case steps.FillMissing():
            _group(columns, step.columns, report)
            _constant(step, path, report)
            if step.strategy == "forward" and not data.time:
                report.add(child(path, "strategy"), "'forward' needs data.time, the column that orders the rows")
        case steps.DropOutliers() | steps.ClipOutliers():
            _group(columns, step.columns, report)
            low, high = _LIMITS[step.method]
            report.between(child(path, "limit"), step.limit, low, high, open_ends=True)
            if isinstance(step, steps.ClipOutliers) and step.method == "isolation_forest":
                report.add(child(path, "method"), "'isolation_forest' has no bound to clip to; use drop_outliers")
        case steps.Cast():
            if not step.columns:
                report.add(path, "no columns; expected a type by column, such as {distance: float}")
            for name, kind in step.columns.items():
                report.known(child(columns, name), kind, CAST_TYPES, "a type")
        case steps.Rename():
            if not step.columns:
                report.add(path, "no columns; expected new names by old, such as {dest: destination}")
            new = tuple(step.columns.values())
            for index, name in enumerate(new):
                if name in new[:index]:
                    report.add(path, f"two columns would be named {name!r}")
        case steps.Filter():
            report.parse(child(path, "where"), parse_filter, step.where)


def _constant(step: steps.FillMissing | steps.Impute, path: str, report: Report) -> None:
    if step.strategy == "constant" and step.value is None:
        report.add(child(path, "value"), "missing; strategy 'constant' needs the value to fill in")
    if step.strategy != "constant" and step.value is not None:
        report.add(child(path, "value"), f"strategy {step.strategy!r} takes no value; did you mean 'constant'?")


def _checks(checks: Checks, data: Data, report: Report) -> None:
    report.between("data.checks.min_rows", checks.min_rows, 1, _INF)
    report.between("data.checks.quarantine", checks.quarantine, 0, 1)
    report.parse("data.checks.max_age", seconds, checks.max_age)
    if checks.max_age is not None and not data.time:
        report.add("data.checks.max_age", "needs data.time, the column that says how old a row is")
    for name, check in checks.columns.items():
        path = child("data.checks.columns", name)
        report.between(child(path, "max_missing"), check.max_missing, 0, 1)
        if check.type is not None:
            report.known(child(path, "type"), check.type, COLUMN_TYPES, "a type")
        if check.min is not None and check.max is not None and check.min > check.max:
            report.add(path, f"min {check.min:g} is above max {check.max:g}")


def check_features(declaration: Declaration, report: Report) -> None:
    """Every feature step."""
    for index, step in enumerate(declaration.features):
        path = child(child("features", index), _name(step))
        _group(child(path, "columns"), step.columns, report)
        _feature(step, path, report)


def _feature(step: steps.FeatureStep, path: str, report: Report) -> None:
    match step:
        case steps.Impute():
            _constant(step, path, report)
        case steps.Encode():
            report.between(child(path, "max_categories"), step.max_categories, 2, _INF)
        case steps.Bin():
            report.between(child(path, "bins"), step.bins, 2, 10_000)
        case steps.DateParts():
            if not step.parts:
                report.add(child(path, "parts"), "no parts; expected some of " + ", ".join(DATE_PARTS))
            for place, part in enumerate(step.parts):
                report.known(child(child(path, "parts"), place), part, DATE_PARTS, "a part of a date")
            report.unique(child(path, "parts"), step.parts)
        case steps.Tfidf():
            report.between(child(path, "max_features"), step.max_features, 1, _INF)
            report.between(child(path, "min_df"), step.min_df, 1, _INF)
            shortest, longest = step.ngrams
            if not 1 <= shortest <= longest:
                message = f"[{shortest}, {longest}] is no range of lengths; expected such as [1, 2]"
                report.add(child(path, "ngrams"), message)
        case steps.Hash():
            report.between(child(path, "buckets"), step.buckets, 1, 2**24)
        case steps.Function():
            check_import_path(child(path, "function"), step.function, report)
        case _:
            pass
