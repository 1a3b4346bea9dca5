"""Gates: the conditions a version must meet, decided on evidence and said in a sentence each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from modelkeep.core.errors import Invalid, Problem
from modelkeep.spec.expressions import Gate, Metric, holds
from modelkeep.spec.names import unknown
from modelkeep.train.compare import Comparison
from modelkeep.train.evaluate import Evaluation, Interval
from modelkeep.train.results import GateResult
from modelkeep.train.slices import ENOUGH


def check(
    gates: Sequence[Gate],
    evaluation: Evaluation,
    comparison: Comparison | None,
    operational: Mapping[str, float] | None = None,
) -> list[GateResult]:
    """Decide every gate.

    A plain gate compares the value; the sentence shows its interval. A gate with ``champion.`` passes only if the
    one-sided 95% bound of the paired difference supports it: ``roc_auc >= champion.roc_auc - 0.005`` needs the
    lower bound of challenger - champion to be at least -0.005. A sliced gate must hold in every slice with enough
    rows where the metric is defined.

    Args:
        gates: Parsed.
        evaluation: Of the challenger.
        comparison: With the champion on the same rows; None while there is no champion.
        operational: What was measured of the package, such as ``latency_ms.p99``.

    Raises:
        Invalid: A gate names a metric this model does not have, at ``gates[i]``.
    """
    operational = operational or {}
    problems: list[Problem] = []
    results: list[GateResult] = []
    for index, gate in enumerate(gates):
        try:
            results.append(_decide(gate, evaluation, comparison, operational))
        except Invalid as error:
            problems += [Problem(f"gates[{index}]", f"{gate.text!r}: {item.message}") for item in error.problems]
    if problems:
        raise Invalid(problems)
    return results


def slice_columns(gates: Sequence[Gate]) -> list[str]:
    """The columns that gates look into, each once."""
    named = [gate.metric.slice for gate in gates] + [gate.champion.slice for gate in gates if gate.champion]
    return list(dict.fromkeys(column for column in named if column))


def compared_metrics(gates: Sequence[Gate]) -> list[str]:
    """The metrics that gates compare with the champion's, each once."""
    return list(dict.fromkeys(gate.metric.name for gate in gates if gate.champion))


def _decide(
    gate: Gate, evaluation: Evaluation, comparison: Comparison | None, operational: Mapping[str, float]
) -> GateResult:
    if gate.metric.name in operational or "." in gate.metric.name:
        return _operational(gate, operational)
    _must_exist(gate.metric, evaluation)
    if gate.champion is None:
        return _sliced(gate, evaluation) if gate.metric.slice else _plain(gate, evaluation)
    if gate.champion != gate.metric:
        raise Invalid(
            f"{gate.metric} is compared with champion.{gate.champion}; only the same metric can be compared on "
            f"the same rows: write champion.{gate.metric}"
        )
    if comparison is None:
        value = None if gate.metric.slice else evaluation.metrics[gate.metric.name].value
        return GateResult(
            gate=gate.text,
            passed=True,
            value=None,
            needed=gate.bound,
            evidence=f"no champion yet; {gate.metric} is {_number(value)}"
            if value is not None
            else "no champion yet",
            rows=evaluation.rows,
        )
    if gate.metric.slice:
        return _sliced_champion(gate, comparison)
    return _champion(gate, comparison)


def _must_exist(metric: Metric, evaluation: Evaluation) -> None:
    if metric.name not in evaluation.metrics:
        known = list(evaluation.metrics)
        raise Invalid(f"this {evaluation.task} model has no {unknown(metric.name, known, 'a metric of it')}")
    if metric.slice and metric.slice not in evaluation.slices:
        raise Invalid(f"column {metric.slice!r} was not evaluated by slice")


def _operational(gate: Gate, operational: Mapping[str, float]) -> GateResult:
    if gate.champion is not None:
        raise Invalid(f"{gate.metric} is measured of one package; compare it with a number")
    value = operational.get(gate.metric.name)
    if value is None or not math.isfinite(value):
        return GateResult(
            gate=gate.text,
            passed=False,
            value=None,
            needed=gate.bound,
            evidence=f"{gate.metric} was not measured",
            rows=0,
        )
    passed = holds(value, gate.op, gate.bound)
    said = f"{gate.metric} is {_number(value)}, needed {gate.op} {_number(gate.bound)}"
    return GateResult(gate=gate.text, passed=passed, value=value, needed=gate.bound, evidence=said, rows=0)


def _plain(gate: Gate, evaluation: Evaluation) -> GateResult:
    found = evaluation.metrics[gate.metric.name]
    passed = found.value is not None and holds(found.value, gate.op, gate.bound)
    said = (
        f"{gate.metric} is {_with_interval(found)}, needed {gate.op} {_number(gate.bound)}, on {found.rows:,} rows"
    )
    return GateResult(
        gate=gate.text, passed=passed, value=found.value, needed=gate.bound, evidence=said, rows=found.rows
    )


def _sliced(gate: Gate, evaluation: Evaluation) -> GateResult:
    column = str(gate.metric.slice)
    groups = evaluation.slices[column]
    found = {group.value: group.metrics[gate.metric.name] for group in groups}
    known = {value: item for value, item in found.items() if item.value is not None}
    if not known:
        return _no_slices(gate, evaluation.rows)
    worst = _worst({value: float(item.value or 0.0) for value, item in known.items()}, gate)
    item = known[worst]
    passed = holds(float(item.value or 0.0), gate.op, gate.bound)
    failing = [value for value, part in known.items() if not holds(float(part.value or 0.0), gate.op, gate.bound)]
    said = (
        f"worst of {len(known)} slices is {column} = {worst}: {gate.metric.name} {_with_interval(item)} on "
        f"{item.rows:,} rows, needed {gate.op} {_number(gate.bound)}{_also(failing, worst)}"
    )
    return GateResult(
        gate=gate.text, passed=passed, value=item.value, needed=gate.bound, evidence=said, rows=item.rows
    )


def _champion(gate: Gate, comparison: Comparison) -> GateResult:
    found = comparison.metrics.get(gate.metric.name)
    if found is None or found.value is None:
        return _incomparable(gate, comparison.rows)
    theirs = comparison.champion.get(gate.metric.name)
    passed, bound = _supported(gate, found)
    level = (1 + comparison.confidence) / 2
    versus = "" if theirs is None else f" ({_number(theirs + found.value)} against {_number(theirs)})"
    said = (
        f"{gate.metric} differs from the champion's by {found.value:+.4g}{versus}; {level:.0%} sure it is "
        f"{_side(gate)} {_signed(bound)}, needed {gate.op} {gate.bound:+.4g}; paired on {found.rows:,} rows"
    )
    return GateResult(
        gate=gate.text,
        passed=passed,
        value=found.value,
        needed=gate.bound,
        evidence=said,
        rows=found.rows,
        confidence=level,
    )


def _sliced_champion(gate: Gate, comparison: Comparison) -> GateResult:
    column = str(gate.metric.slice)
    groups = comparison.slices.get(column, {})
    found = {value: metrics[gate.metric.name] for value, metrics in groups.items() if gate.metric.name in metrics}
    bounds = {value: _supported(gate, item)[1] for value, item in found.items() if item.value is not None}
    known = {value: bound for value, bound in bounds.items() if bound is not None}
    if not known:
        return _no_slices(gate, comparison.rows)
    level = (1 + comparison.confidence) / 2
    worst = _worst(known, gate)
    item = found[worst]
    failing = [value for value in known if not _supported(gate, found[value])[0]]
    said = (
        f"worst of {len(known)} slices is {column} = {worst}: {gate.metric.name} differs from the champion's by "
        f"{item.value:+.4g}, {level:.0%} sure it is {_side(gate)} {_signed(known[worst])}, needed {gate.op} "
        f"{gate.bound:+.4g}; paired on the same {item.rows:,} rows{_also(failing, worst)}"
    )
    return GateResult(
        gate=gate.text,
        passed=not failing,
        value=item.value,
        needed=gate.bound,
        evidence=said,
        rows=item.rows,
        confidence=level,
    )


def _supported(gate: Gate, difference: Interval) -> tuple[bool, float | None]:
    """Whether the bound on the side that could hurt meets the gate, and that bound."""
    bound = difference.low if gate.op in (">=", ">") else difference.high
    return bound is not None and holds(bound, gate.op, gate.bound), bound


def _incomparable(gate: Gate, rows: int) -> GateResult:
    return GateResult(
        gate=gate.text,
        passed=False,
        value=None,
        needed=gate.bound,
        evidence=f"{gate.metric} is not defined for both on the same {rows:,} rows",
        rows=rows,
    )


def _no_slices(gate: Gate, rows: int) -> GateResult:
    return GateResult(
        gate=gate.text,
        passed=False,
        value=None,
        needed=gate.bound,
        evidence=f"no value of {gate.metric.slice} has {ENOUGH} rows on which {gate.metric.name} is defined",
        rows=rows,
    )


def _worst(values: Mapping[str, float], gate: Gate) -> str:
    pick = min if gate.op in (">=", ">") else max
    return pick(values, key=lambda value: values[value])


def _also(failing: Sequence[str], worst: str) -> str:
    others = [value for value in failing if value != worst]
    return f"; {', '.join(others[:5])}{' and more' if len(others) > 5 else ''} fail too" if others else ""


def _side(gate: Gate) -> str:
    return "at least" if gate.op in (">=", ">") else "at most"


def _with_interval(item: Interval) -> str:
    if item.low is None or item.high is None:
        return _number(item.value)
    return f"{_number(item.value)} (95% {_number(item.low)} to {_number(item.high)})"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.4g}"
