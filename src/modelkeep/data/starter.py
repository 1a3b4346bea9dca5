"""The first declaration: looks at data and writes commented YAML that already runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modelkeep.core.errors import Invalid
from modelkeep.data.cleaning import duplicates
from modelkeep.data.columns import Kind, kinds
from modelkeep.data.sources import open_source
from modelkeep.spec.declaration import Data

LOOK_ROWS = 200_000
"""Rows looked at."""

_TARGETS = (
    "target",
    "label",
    "labels",
    "class",
    "y",
    "outcome",
    "response",
    "churn",
    "churned",
    "survived",
    "species",
)
_TIMES = ("time", "timestamp", "date", "datetime", "created_at", "scheduled_at", "event_time")
_KEY = re.compile(r"(^|_)(id|key|uuid|guid)$|^(id|uuid)_|[a-z](ID|Id)$")
_FEW_CLASSES = 20
_FEW_ONEHOT = 30


@dataclass(frozen=True)
class Guess:
    """What the columns seem to be.

    Attributes:
        target: What to predict.
        key: What identifies a row; empty when nothing does.
        time: What orders rows; empty when nothing does.
        excluded: Columns of no use, with why.
        kinds: Of the columns that are left.
        task: ``classification`` or ``regression``.
        classes: Distinct values of the target; 0 for regression.
    """

    target: str
    key: str
    time: str
    excluded: dict[str, str]
    kinds: dict[str, Kind]
    task: str
    classes: int


def declare(path: Path) -> str:
    """The commented YAML that ``modelkeep init`` writes.

    Args:
        path: A data file, folder or glob, or an object-store URL; as the declaration will name it.

    Raises:
        NotFound: There is no such file.
        Invalid: It cannot be read as a table, or holds no column to predict.
    """
    address = str(path).replace(":/", "://", 1) if re.match(r"^[a-z0-9]+:/[^/]", str(path)) else str(path)
    source = open_source(Data(source=address), Path())
    partition = next(iter(source.fingerprint()))
    table = next(iter(source.pieces(partition))).slice(0, LOOK_ROWS)
    return _written(address, guess(table), table)


def guess(table: pa.Table) -> Guess:
    """What the columns seem to be. Raises ``Invalid`` when none can be predicted."""
    known = kinds(table)
    target = _target(table, known)
    missing = {name: table.column(name).null_count for name in table.column_names}
    excluded = {
        name: "it has no values"
        if missing[name] == table.num_rows
        else f"its type is {table.schema.field(name).type}"
        for name, kind in known.items()
        if name != target and (kind == "other" or missing[name] == table.num_rows)
    }
    rest = [name for name in table.column_names if name != target and name not in excluded]
    key = next((name for name in rest if _KEY.search(name) and _identifies(table, name)), "")
    times = [name for name in rest if known[name] == "time"]
    time = next((name for name in times if name.lower() in _TIMES), times[0] if times else "")
    for name in rest:
        column = table.column(name)
        if name in (key, time):
            continue
        if known[name] == "categorical" and pc.count_distinct(column).as_py() > max(100, table.num_rows // 2):
            excluded[name] = "nearly every row has a value of its own"
    left = {name: known[name] for name in rest if name not in excluded and name not in (key, time)}
    if not left and time:
        left, time = {time: known[time]}, ""
    task, classes = _task(table.column(target), known[target])
    return Guess(target, key, time, excluded, left, task, classes)


def _target(table: pa.Table, known: dict[str, Kind]) -> str:
    possible: list[str] = [
        name
        for name in table.column_names
        if known[name] in ("numeric", "boolean", "categorical")
        and pc.count_distinct(table.column(name)).as_py() > 1
    ]
    if not possible or table.num_columns < 2:
        raise Invalid(
            "no column can be predicted: expected two columns or more, one of which varies", path="data.target"
        )
    lower = {name.lower(): name for name in reversed(possible)}
    for name in _TARGETS:
        if name in lower:
            return lower[name]
    usable = [name for name in possible if not _KEY.search(name)]
    return (usable or possible)[-1]


def _identifies(table: pa.Table, name: str) -> bool:
    return not table.column(name).null_count and not duplicates(table, [name]).any()


def _task(column: pa.ChunkedArray, kind: Kind) -> tuple[str, int]:
    distinct = int(pc.count_distinct(column, mode="only_valid").as_py())
    if kind in ("boolean", "categorical"):
        return "classification", distinct
    if pa.types.is_integer(column.type) and distinct <= _FEW_CLASSES:
        return "classification", distinct
    values = column.drop_null().cast(pa.float64()).to_numpy()
    if distinct == 2 and np.isin(values, (0.0, 1.0)).all():
        return "classification", 2
    return "regression", 0


def _written(address: str, found: Guess, table: pa.Table) -> str:
    lines = [
        "# What must stay true of this model. Read it, change what you know better, then: modelkeep plan",
        f"model: {_scalar(_name(address))}",
        f"description: {_scalar(f'Predicts {found.target}.')}",
        "",
        "data:",
        _line(
            f"  source: {_scalar(address)}", "a file, folder, glob, s3://... address, SQL query or Python function"
        ),
        _line(f"  target: {_scalar(found.target)}", f"guessed: {_about(found)}"),
    ]
    if found.key:
        lines.append(_line(f"  key: {_scalar(found.key)}", "identifies a row: it stays on its side of the split"))
    else:
        lines.append(
            "  # key: id                           # name what identifies a row, if there is such a column"
        )
    if found.time:
        lines.append(_line(f"  time: {_scalar(found.time)}", "orders rows in time"))
    if found.excluded:
        lines.append("  exclude:")
        lines += [_line(f"    - {_scalar(name)}", why) for name, why in found.excluded.items()]
    lines += _cleaning(found, table)
    by = "key" if table.num_rows >= 1000 else "random"
    lines += [_line(f"  split: {{test: 0.2, by: {by}}}", "or by: key | random | time"), ""]
    features = _features(found, table)
    if features:
        lines += [
            "features:                               # fitted on the training rows, served with the model",
            *features,
            "",
        ]
    return "\n".join([*lines, *_training(found), *_deployment()]) + "\n"


def _cleaning(found: Guess, table: pa.Table) -> list[str]:
    steps = ["    - drop_duplicates"]
    column = table.column(found.target)
    if column.null_count or pa.types.is_floating(column.type):
        steps.append(
            _line(
                f"    - drop_missing: [{_scalar(found.target, flow=True)}]", "rows without a target teach nothing"
            )
        )
    return ["  clean:", *steps]


def _features(found: Guess, table: pa.Table) -> list[str]:
    by_kind: dict[str, list[str]] = {}
    for name, kind in found.kinds.items():
        by_kind.setdefault(kind, []).append(name)
    lines = []
    if "numeric" in by_kind:
        lines += [
            "  - impute: {columns: numeric, strategy: median}",
            "  - scale: {columns: numeric, method: standard}",
        ]
    few: list[str] = []
    many: list[str] = []
    for name in by_kind.get("categorical", ()):
        (few if pc.count_distinct(table.column(name)).as_py() <= _FEW_ONEHOT else many).append(name)
    if few:
        lines.append(f"  - encode: {{columns: {_listed(few)}, method: onehot}}")
    if many:
        lines.append(
            _line(
                f"  - encode: {{columns: {_listed(many)}, method: onehot, max_categories: 30}}",
                "the rest share one",
            )
        )
    if "time" in by_kind:
        names = _listed(by_kind["time"])
        lines.append(f"  - date_parts: {{columns: {names}, parts: [month, weekday, hour]}}")
        lines.append(f"  - impute: {{columns: {names}, strategy: median}}")
    lines += [
        f"  - tfidf: {{columns: {_listed([name])}, max_features: 20000}}" for name in by_kind.get("text", ())
    ]
    if "boolean" in by_kind:
        lines.append(f"  - impute: {{columns: {_listed(by_kind['boolean'])}, strategy: mode}}")
    return lines


def _training(found: Guess) -> list[str]:
    sparse = "text" in found.kinds.values()
    if found.task == "regression":
        algorithm, metric, gate = "ridge" if sparse else "hist_gradient_boosting", "rmse", "r2 >= 0"
    else:
        algorithm = "logistic_regression" if sparse else "hist_gradient_boosting"
        metric = "roc_auc" if found.classes == 2 else "f1_macro"
        gate = "roc_auc >= 0.5" if found.classes == 2 else "accuracy >= 0.1"
    better = f"{metric} {'<=' if found.task == 'regression' else '>='} champion.{metric}"
    return [
        "train:",
        _line(f"  algorithm: {algorithm}", "or another short name, an import path, or auto"),
        f"  task: {found.task}",
        f"  metric: {metric}",
        "  # tune: {trials: 20, space: {...}}    # search for better parameters",
        "",
        "gates:                                  # what a version must show before it takes traffic",
        f"  - {gate}",
        f"  # - {better}  # no worse than what serves now, with its uncertainty",
        "",
    ]


def _deployment() -> list[str]:
    return [
        "monitor:",
        "  window: 1h",
        "",
        "update:",
        _line("  when: [drift, performance_drop]", "renew by itself on evidence"),
    ]


def _about(found: Guess) -> str:
    return "a number to predict" if found.task == "regression" else f"{found.classes} classes to tell apart"


def _line(text: str, comment: str) -> str:
    return f"{text:<39} # {comment}"


def _name(address: str) -> str:
    stem = Path(re.split(r"[*?\[]", address)[0].rstrip("/-_.")).name.split(".")[0]
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "model"


def _listed(names: Sequence[str]) -> str:
    return "[" + ", ".join(_scalar(name, flow=True) for name in names) + "]"


def _scalar(text: str, *, flow: bool = False) -> str:
    """The text as YAML; quoted where plain YAML would read something else."""
    plain = r"[A-Za-z_][\w ./-]*" if not flow else r"[A-Za-z_][\w./-]*"
    words = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
    if re.fullmatch(plain, text) and text.lower() not in words and not text.endswith(" "):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
