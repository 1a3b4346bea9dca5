"""Calendar numbers of timestamps by integer arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelkeep.formats.onnx.graph import INT64, Graph, Unconvertible

_DAY = 86_400
_SHIFT = 400 * 10_000
"""Years added so that no number is negative, a whole number of 400-year eras: ONNX divides towards zero."""
_ERA_DAYS = 146_097


def date_parts(graph: Graph, micros: str, parts: Sequence[str]) -> list[str]:
    """Year, month, day, weekday, hour, minute, dayofyear, after Hinnant's ``civil_from_days``
    (https://howardhinnant.github.io/date_algorithms.html).

    Args:
        graph: The graph.
        micros: Microseconds since 1970 UTC, [rows, 1] float64; NaN is missing.
        parts: Which.

    Returns:
        A float64 tensor [rows, 1] per part; NaN where missing.
    """
    arithmetic = _Integers(graph)
    missing = graph.op("IsNaN", micros)
    nan = graph.const(np.array(np.nan))
    million = graph.const(np.array(1e6))
    whole = graph.op(
        "Floor", graph.op("Div", graph.op("Where", missing, graph.const(np.array(0.0)), micros), million)
    )
    seconds = graph.op("Cast", whole, to=INT64)
    made = _civil(graph, arithmetic, arithmetic.add(seconds, (_SHIFT // 400) * _ERA_DAYS * _DAY))
    for part in parts:
        if part not in made:
            raise Unconvertible(f"no date part {part!r}")
    return [graph.op("Where", missing, nan, graph.double(made[part])) for part in parts]


class _Integers:
    """Arithmetic of int64 tensors with constants, all non-negative."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def _with(self, kind: str, x: str, y: int | str) -> str:
        return self.graph.op(kind, x, y if isinstance(y, str) else self.graph.const(np.array(y, np.int64)))

    def add(self, x: str, y: int | str) -> str:
        return self._with("Add", x, y)

    def sub(self, x: str, y: int | str) -> str:
        return self._with("Sub", x, y)

    def mul(self, x: str, y: int) -> str:
        return self._with("Mul", x, y)

    def div(self, x: str, y: int) -> str:
        return self._with("Div", x, y)

    def mod(self, x: str, y: int) -> str:
        return self._with("Mod", x, y)

    def when(self, condition: str, x: str, y: str) -> str:
        return self.graph.op("Where", condition, x, y)


def _civil(graph: Graph, i: _Integers, seconds: str) -> dict[str, str]:
    """Every part of shifted seconds; parts nobody asks for are pruned from the graph."""
    days, second = i.div(seconds, _DAY), i.mod(seconds, _DAY)
    since_march = i.add(days, 719_468)
    era, day = i.div(since_march, _ERA_DAYS), i.mod(since_march, _ERA_DAYS)
    corrected = i.sub(i.add(i.sub(day, i.div(day, 1460)), i.div(day, 36_524)), i.div(day, 146_096))
    year_of_era = i.div(corrected, 365)
    spent = i.sub(i.add(i.mul(year_of_era, 365), i.div(year_of_era, 4)), i.div(year_of_era, 100))
    day_of_year = i.sub(day, spent)  # from 1 March
    shifted = i.div(i.add(i.mul(day_of_year, 5), 2), 153)
    early = graph.op("Less", shifted, graph.const(np.array(10, np.int64)))
    month = i.when(early, i.add(shifted, 3), i.sub(shifted, 9))
    january = graph.op("Not", early)
    year = i.add(i.add(year_of_era, i.mul(era, 400)), graph.op("Cast", january, to=INT64))
    leap = graph.op("And", _divides(graph, i, year, 4), graph.op("Not", _divides(graph, i, year, 100)))
    leap = graph.op("Cast", graph.op("Or", leap, _divides(graph, i, year, 400)), to=INT64)
    return {
        "year": i.sub(year, _SHIFT),
        "month": month,
        "day": i.add(i.sub(day_of_year, i.div(i.add(i.mul(shifted, 153), 2), 5)), 1),
        "weekday": i.mod(i.add(days, 3), 7),
        "hour": i.div(second, 3600),
        "minute": i.div(i.mod(second, 3600), 60),
        "dayofyear": i.when(january, i.sub(day_of_year, 305), i.add(i.add(day_of_year, 60), leap)),
    }


def _divides(graph: Graph, i: _Integers, x: str, by: int) -> str:
    return graph.op("Equal", i.mod(x, by), graph.const(np.array(0, np.int64)))
