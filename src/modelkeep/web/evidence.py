"""Evaluations as pages need them. Their JSON comes from the registry, where outsiders may have written it too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelkeep.registry.findings import Finding

CURVES = (
    ("roc", "ROC", "false positive rate", "true positive rate", True),
    ("pr", "Precision and recall", "recall", "precision", False),
    ("calibration", "Calibration", "stated probability", "observed share", True),
)
"""Name, title, x, y, and whether the diagonal means something."""

MOST_CLASSES = 25
"""Classes up to which a confusion matrix can be read."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric's value, its interval where there is one, and over how many rows."""

    value: float
    low: float | None = None
    high: float | None = None
    rows: int | None = None


def of_version(kept: Mapping[str, Any]) -> Mapping[str, Any]:
    """The evaluation in what a version keeps; empty when it was registered from outside without one."""
    return _map(kept.get("evaluation")) or kept


def against_champion(kept: Mapping[str, Any]) -> dict[str, Measured]:
    """By metric the difference to the champion on the same rows; empty where nothing was compared."""
    return measured(_map(kept.get("comparison")))


def measured(evaluation: Mapping[str, Any]) -> dict[str, Measured]:
    """The metrics of an evaluation or a window by name; those without a finite value are left out."""
    found = {}
    for name, said in _map(evaluation.get("metrics")).items():
        one = _measured(said)
        if one is not None:
            found[str(name)] = one
    return found


def slices(evaluation: Mapping[str, Any], metric: str) -> list[tuple[str, str, int | None, Measured]]:
    """``(column, group, rows, metric)`` for each group the evaluation holds the metric of."""
    found = []
    for column, groups in _map(evaluation.get("slices")).items():
        for said in map(_map, _list(groups)):
            one = _measured(_map(said.get("metrics")).get(metric))
            if one is not None:
                found.append((str(column), str(said.get("value")), said.get("rows", one.rows), one))
    return found


def curves(evaluation: Mapping[str, Any], name: str) -> dict[str, tuple[list[float], list[float]]]:
    """The lines of a curve by class, as (x, y)."""
    lines = {}
    for label, line in _map(evaluation.get(name)).items():
        xs, ys = _list(_map(line).get("x")), _list(_map(line).get("y"))
        if len(xs) == len(ys) > 1:
            lines[str(label)] = (xs, ys)
    return lines


def confusion(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[int]]] | None:
    """Classes and counts (true by row, predicted by column); None when there are none or too many to read."""
    said = _map(evaluation.get("confusion"))
    classes, counts = _list(said.get("classes")), _list(said.get("counts"))
    if not 2 <= len(classes) <= MOST_CLASSES:
        return None
    return [str(name) for name in classes], [_list(row) for row in counts]


def drifted(finding: Finding) -> list[tuple[float, str, float]]:
    """``(time, column, distance)`` for each column a finding of drift names; distance in [0, 1]."""
    if finding.kind != "drift":
        return []
    marks = []
    for item in _list(finding.evidence.get("columns")):
        said = item if isinstance(item, Mapping) else {"column": item}
        column = said.get("column") or said.get("name")
        distance = next(
            (found for key in ("distance", "effect", "statistic") if (found := _number(said.get(key)))), 0.0
        )
        if isinstance(column, str):
            marks.append((finding.at, column, distance))
    return marks


def gates(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each gate's text, whether it passed, the value and what was needed, and the evidence as one sentence."""
    return [dict(item) for item in _list(evaluation.get("gates")) if isinstance(item, Mapping)]


def _measured(said: Any) -> Measured | None:
    if isinstance(said, Mapping):
        value = _number(said.get("value"))
        rows = said.get("rows")
        low, high = _number(said.get("low")), _number(said.get("high"))
        return None if value is None else Measured(value, low, high, rows if isinstance(rows, int) else None)
    value = _number(said)
    return None if value is None else Measured(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
