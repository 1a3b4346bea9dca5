"""Gates, conditions, triggers, rollouts, filters, units."""

from __future__ import annotations

from datetime import UTC, datetime

import duckdb
import pytest

from modelkeep.core.errors import Invalid
from modelkeep.spec.expressions import (
    Condition,
    Cron,
    Drift,
    Gate,
    Metric,
    NewRows,
    PerformanceDrop,
    RolloutStep,
    parse_condition,
    parse_filter,
    parse_gate,
    parse_rollout,
    parse_trigger,
)
from modelkeep.spec.names import METRICS, nearest
from modelkeep.spec.units import rate, seconds


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("roc_auc >= 0.60", (Metric("roc_auc"), ">=", 0.6, None)),
        ("rmse<champion.rmse+1", (Metric("rmse"), "<", 1.0, Metric("rmse"))),
        ("roc_auc >= champion.roc_auc - 0.005", (Metric("roc_auc"), ">=", -0.005, Metric("roc_auc"))),
        ("f1 > champion.f1", (Metric("f1"), ">", 0.0, Metric("f1"))),
        ("slice(carrier).roc_auc >= 55%", (Metric("roc_auc", "carrier"), ">=", 0.55, None)),
        (
            "slice(`a b`).f1 >= champion.slice('a b').f1 - 1%",
            (Metric("f1", "a b"), ">=", -0.01, Metric("f1", "a b")),
        ),
        ("latency_ms.p99 <= 5", (Metric("latency_ms.p99"), "<=", 5.0, None)),
        ("r2 >= -0.5", (Metric("r2"), ">=", -0.5, None)),
    ],
)
def test_gates(text: str, gate: tuple[Metric, str, float, Metric | None]) -> None:
    assert parse_gate(text) == Gate(*gate, text=text)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_stand_in_a_gate(name: str) -> None:
    assert parse_gate(f"{name} >= 0").metric == Metric(name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("roc_auk >= 0.6", "did you mean 'roc_auc'? (character 1"),
        ("roc_auc => 0.6", "found '=', expected one of >=, >, <=, < (character 9"),
        ("roc_auc >=", "found the end, expected a number (character 11"),
        ("roc_auc >= 0.6 5", "expected the end (character 16"),
        ("f1 >= champ.f1", "did you mean 'champion'?"),
        ("latency_ms.p90 < 1", "did you mean 'latency_ms.p9"),
        ("slice().f1 > 0", "expected a column (character 7"),
        ("f1 > 'a", "never closed (character 6"),
        ("f1 > 1;", "unexpected ';' (character 7"),
        ("f1 > 1e999", "too large"),
        ("f1 > __import__('os')", "did you mean"),
    ],
)
def test_faulty_gates_say_what_and_where(text: str, says: str) -> None:
    if text.startswith("f1 > __import__"):
        says = "is not a bound"
    with pytest.raises(Invalid) as caught:
        parse_gate(text)
    assert says in str(caught.value)


def test_conditions() -> None:
    condition = parse_condition("error_rate > 1%")
    assert condition == Condition("error_rate", ">", 0.01, "error_rate > 1%")
    assert condition.holds(0.02)
    assert not condition.holds(0.01)
    assert not condition.holds(float("nan"))
    assert parse_condition("latency_ms.p99 > 50").bound == 50.0


def test_triggers() -> None:
    assert parse_trigger("drift") == Drift()
    assert parse_trigger(" performance_drop ") == PerformanceDrop()
    assert parse_trigger("new_rows >= 10000") == NewRows(10000)
    for text in (
        "new_rows > 5",
        "new_rows >= 0.5",
        "drift now",
        "cron",
        "weekly",
        "cron 0 3 30 2 *",
        "cron 5-1 * * * *",
    ):
        with pytest.raises(Invalid):
            parse_trigger(text)


@pytest.mark.parametrize(
    ("text", "after", "then"),
    [
        ("0 3 * * *", "2024-01-01 03:00", "2024-01-02 03:00"),
        ("0 3 * * *", "2024-01-01 02:59", "2024-01-01 03:00"),
        ("*/15 * * * *", "2024-01-01 10:14", "2024-01-01 10:15"),
        ("5/20 * * * *", "2024-01-01 10:26", "2024-01-01 10:45"),
        ("0 9-17 * * mon-fri", "2024-01-05 17:00", "2024-01-08 09:00"),
        ("30 6 1,15 * *", "2024-01-01 06:30", "2024-01-15 06:30"),
        ("0 0 29 feb *", "2024-03-01 00:00", "2028-02-29 00:00"),
        ("0 0 * * 7", "2024-01-01 00:00", "2024-01-07 00:00"),
        ("0 0 13 * fri", "2024-09-07 00:00", "2024-09-13 00:00"),
        ("0 0 13 * fri", "2024-10-11 00:00", "2024-10-13 00:00"),
    ],
)
def test_cron_times(text: str, after: str, then: str) -> None:
    cron = parse_trigger(f"cron {text}")
    assert isinstance(cron, Cron)
    start, moment = (datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp() for stamp in (after, then))
    assert cron.next(start) == moment
    assert not cron.due(start, moment - 1)
    assert cron.due(start, moment)
    assert not cron.due(moment, moment)


def test_rollouts() -> None:
    assert parse_rollout("shadow 10m") == RolloutStep("shadow", 0.0, 600.0, "shadow 10m")
    assert parse_rollout("canary 5% 1h30m") == RolloutStep("canary", 0.05, 5400.0, "canary 5% 1h30m")
    for text in ("shadow", "shadow 5% 1m", "canary 0% 1m", "canary 101% 1m", "canary 5% 0s", "canary 5%", ""):
        with pytest.raises(Invalid):
            parse_rollout(text)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("distance > 100", [2, 3]),
        ("origin == 'JFK'", [1, 2]),
        ("origin in ('JFK', \"O'Hare\")", [1, 2, 3]),
        ("origin not in ('JFK')", [3]),
        ("`air time` is null", [2]),
        ("`air time` is not null and not distance > 100", [1]),
        ("distance between 100 and 200 or id = 3", [1, 2, 3]),
        ("origin like 'J%'", [1, 2]),
        ("not (origin like 'J%')", [3]),
        ("ok", [1, 3]),
        ("ok = false", [2]),
        ("distance != -1 and distance <> 1e2", [2, 3]),
    ],
)
def test_filters_select_rows_in_duckdb(text: str, rows: list[int]) -> None:
    table = """(values (1, 100, 'JFK', 5, true), (2, 200, 'JFK', null, false), (3, 300, 'O''Hare', 7, true))
        t(id, distance, origin, "air time", ok)"""
    found = duckdb.sql(f"select id from {table} where {parse_filter(text).sql()} order by id").fetchall()
    assert [row[0] for row in found] == rows


def test_filters_quote_names_and_strings() -> None:
    row_filter = parse_filter("`a\"; drop table t` = 'x''; --' and b > 1 and b < 2")
    assert row_filter.columns == ('a"; drop table t', "b")
    assert row_filter.sql() == '"a""; drop table t" = \'x\'\'; --\' AND "b" > 1 AND "b" < 2'
    assert row_filter.sql(lambda name: f"[{name}]").startswith("[a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("distance >", "found the end, expected a column or a value (character 11"),
        ("a = null", "is null"),
        ("a in ()", "a number or a string"),
        ("(a > 1", "expected ')'"),
        ("a not 1", "'in', 'between' or 'like'"),
        ("5", "a value alone"),
        ("a > 5%", "percentage"),
        ("(" * 60 + "a", "parentheses"),
        ("f(a) > 1", "found '('"),
        ("a > 1; drop table t", "unexpected ';'"),
        ("x" * 20_000, "characters long"),
    ],
)
def test_faulty_filters(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_filter(text)
    assert says in str(caught.value)


def test_units() -> None:
    assert [seconds(text) for text in ("250ms", "10m", "1d", "1h 30m", "0s", "1.5h", "2w")] == [
        0.25,
        600.0,
        86400.0,
        5400.0,
        0.0,
        5400.0,
        1209600.0,
    ]
    assert [rate(text) for text in ("1 per 1000 windows", "0.1%", "0.001", "1 per 1000")] == [0.001] * 4
    for text in ("10", "m", "-5m", "10 minutes", ""):
        with pytest.raises(Invalid):
            seconds(text)
    for text in ("2 per 1", "1 per 0", "0", "100%", "often"):
        with pytest.raises(Invalid):
            rate(text)


def test_nearest() -> None:
    assert nearest("random_forrest", METRICS) is None
    assert nearest("RMSE", METRICS) == "rmse"
    assert nearest("x" * 1_000_000, METRICS) is None
