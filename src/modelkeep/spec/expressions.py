"""Gates, conditions, triggers and rollout steps: a small typed grammar, no ``eval``.

gate      := metric op bound
metric    := ['slice' '(' column ')' '.'] name ['.' percentile]
bound     := number ['%'] | 'champion' '.' metric [('+' | '-') number ['%']]
op        := '>=' | '>' | '<=' | '<'
condition := quantity op number ['%']
trigger   := 'drift' | 'performance_drop' | 'new_rows' '>=' number | 'cron' five fields
rollout   := 'shadow' duration | 'canary' percent duration
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelkeep.core.errors import Invalid
from modelkeep.spec.cron import Cron, parse_cron
from modelkeep.spec.filters import Filter, parse_filter
from modelkeep.spec.names import LATENCIES, METRICS, QUANTITIES, unknown
from modelkeep.spec.tokens import Cursor, fault
from modelkeep.spec.units import seconds

__all__ = [
    "Condition",
    "Cron",
    "Drift",
    "Filter",
    "Gate",
    "Metric",
    "NewRows",
    "Op",
    "PerformanceDrop",
    "RolloutStep",
    "Trigger",
    "holds",
    "parse_condition",
    "parse_cron",
    "parse_filter",
    "parse_gate",
    "parse_rollout",
    "parse_trigger",
]

Op = Literal[">=", ">", "<=", "<"]
_OPS = (">=", ">", "<=", "<")


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured: ``name`` over all rows, or in each group of the column ``slice``."""

    name: str
    slice: str | None = None

    def __str__(self) -> str:
        return f"slice({self.slice}).{self.name}" if self.slice is not None else self.name


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition a version must meet.

    Attributes:
        metric: What is measured of the version.
        op: How it must compare.
        bound: With a champion the signed margin added to the champion's metric, else the bound itself.
        champion: The champion's metric, when the bound is relative to it.
        text: As written.
    """

    metric: Metric
    op: Op
    bound: float
    champion: Metric | None
    text: str


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on live traffic: ``error_rate`` as a share, latencies in milliseconds."""

    quantity: str
    op: Op
    bound: float
    text: str

    def holds(self, value: float) -> bool:
        """Whether a measured value meets it."""
        return holds(value, self.op, self.bound)


@dataclass(frozen=True, slots=True)
class Drift:
    """Renew when the inputs drift."""


@dataclass(frozen=True, slots=True)
class PerformanceDrop:
    """Renew when the live metric falls."""


@dataclass(frozen=True, slots=True)
class NewRows:
    """Renew when at least ``count`` rows arrived since the last snapshot."""

    count: int


Trigger = Drift | PerformanceDrop | NewRows | Cron
_TRIGGERS = ("drift", "performance_drop", "new_rows", "cron")


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """One step on a version's way to all traffic.

    Attributes:
        kind: ``shadow`` answers no one, its predictions are only compared; ``canary`` answers a share.
        weight: The share of requests it answers, in [0, 1]; 0 for ``shadow``.
        seconds: How long.
        text: As written.
    """

    kind: Literal["shadow", "canary"]
    weight: float
    seconds: float
    text: str


def holds(value: float, op: Op, bound: float) -> bool:
    """Whether ``value op bound``; False when the value is NaN."""
    if op == ">=":
        return value >= bound
    if op == ">":
        return value > bound
    return value <= bound if op == "<=" else value < bound


def parse_gate(text: str) -> Gate:
    """Read a gate.

    Raises:
        Invalid: With the position, what was expected there, and the nearest metric.
    """
    cursor = Cursor(text)
    metric = _metric(cursor)
    op = _op(cursor)
    champion: Metric | None = None
    if cursor.keyword("champion"):
        cursor.need_op(".")
        champion = _metric(cursor)
        bound = cursor.number() if cursor.now.text in ("+", "-") and cursor.now.kind == "op" else 0.0
    elif cursor.now.kind == "word":
        fault(text, cursor.now.at, unknown(cursor.now.text, ("champion",), "a bound") + " (or a number)")
    else:
        bound = cursor.number()
    cursor.need_end()
    return Gate(metric, op, bound, champion, text)


def parse_condition(text: str) -> Condition:
    """Read a condition on live traffic.

    Raises:
        Invalid: With the position, what was expected there, and the nearest quantity.
    """
    cursor = Cursor(text)
    quantity = _dotted(cursor, QUANTITIES, "something measured of live traffic")
    op = _op(cursor)
    bound = cursor.number()
    cursor.need_end()
    return Condition(quantity, op, bound, text)


def parse_trigger(text: str) -> Trigger:
    """Read a trigger.

    Raises:
        Invalid: With what was expected, and the nearest trigger.
    """
    word, _, rest = text.strip().partition(" ")
    if word == "cron":
        return parse_cron(rest)
    cursor = Cursor(text)
    name = cursor.keyword(*_TRIGGERS)
    if name is None:
        if cursor.now.kind == "word":
            raise Invalid(unknown(cursor.now.text, _TRIGGERS, "a trigger"))
        cursor.expected("one of " + ", ".join(_TRIGGERS))
    if name == "new_rows":
        if cursor.op(">=") is None:
            cursor.expected("'>=' and a number of rows")
        at = cursor.now.at
        count = cursor.number()
        if count < 1 or count != int(count):
            fault(text, at, f"{count:g} rows, expected a whole number of at least 1")
        cursor.need_end()
        return NewRows(int(count))
    if name == "cron":
        cursor.expected("five fields such as 'cron 0 3 * * *'")
    cursor.need_end()
    return Drift() if name == "drift" else PerformanceDrop()


def parse_rollout(text: str) -> RolloutStep:
    """Read a rollout step.

    Raises:
        Invalid: With what was expected.
    """
    words = text.split()
    kind = words[0] if words else ""
    if kind == "shadow":
        if len(words) != 2:
            raise Invalid(f"{text!r}: expected 'shadow' and a duration, such as 'shadow 10m'")
        return RolloutStep("shadow", 0.0, _lasting(words[1]), text)
    if kind == "canary":
        if len(words) != 3 or not words[1].endswith("%"):
            raise Invalid(f"{text!r}: expected 'canary', a percentage and a duration, such as 'canary 5% 10m'")
        cursor = Cursor(words[1])
        weight = cursor.number()
        cursor.need_end()
        if not 0.0 < weight <= 1.0:
            raise Invalid(f"{text!r}: the share is {weight * 100:g}%, expected more than 0% and at most 100%")
        return RolloutStep("canary", weight, _lasting(words[2]), text)
    raise Invalid(unknown(kind, ("shadow", "canary"), "a rollout step"))


def _lasting(word: str) -> float:
    lasting = seconds(word)
    if lasting <= 0:
        raise Invalid(f"{word!r}: a rollout step must last longer than nothing")
    return lasting


def _op(cursor: Cursor) -> Op:
    op = cursor.op(*_OPS)
    if op is None:
        cursor.expected("one of >=, >, <=, <")
    return op  # type: ignore[return-value]


def _metric(cursor: Cursor) -> Metric:
    name = cursor.now
    if name.kind == "word" and name.text == "slice":
        cursor.take()
        cursor.need_op("(")
        column = cursor.now
        if column.kind not in ("word", "name", "quoted") or not column.text:
            cursor.expected("a column")
        cursor.take()
        cursor.need_op(")")
        cursor.need_op(".")
        return Metric(_dotted(cursor, METRICS, "a metric that can be sliced"), column.text)
    if name.kind == "word" and name.text == "error_rate":
        fault(cursor.text, name.at, "error_rate is known only of live traffic; write it under deploy.abort")
    return Metric(_dotted(cursor, (*METRICS, *LATENCIES), "a metric"))


def _dotted(cursor: Cursor, names: tuple[str, ...], what: str) -> str:
    start = cursor.now
    if start.kind != "word":
        cursor.expected(what)
    name = cursor.take().text
    while cursor.op("."):
        if cursor.now.kind != "word":
            cursor.expected("a name")
        name += "." + cursor.take().text
    if name not in names:
        fault(cursor.text, start.at, unknown(name, names, what))
    return name
