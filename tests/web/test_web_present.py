"""How values look."""

from __future__ import annotations

import pytest

from modelkeep.web import present


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.73214, "0.732"),
        (53.123, "53.12"),
        (327_346, "327,346"),
        (3743.98, "3,744.0"),
        (123_456.7, "123,457"),
        (0.00001234, "1.23e-05"),
        (0.0, "0.000"),
        (None, "–"),
        (float("nan"), "–"),
        (float("-inf"), "−∞"),
    ],
)
def test_number(value: object, text: str) -> None:
    assert present.number(value) == text


def test_told_puts_what_was_written_for_people_first() -> None:
    assert present.told({"because": "drift", "step": "canary 10% 1d", "job": 3}) == "drift: canary 10% 1d"
    assert present.told({"job": 3, "before": None, "digest": "ab" * 32}) == "job 3, digest abababababab"
    refused = {"because": "applied", "gates": ["..."], "failed": ["rmse <= 65", "r2 >= 0.3"]}
    assert present.told(refused) == "applied: failed rmse <= 65, r2 >= 0.3"
    assert present.told(None) == ""


def test_tone() -> None:
    kinds = ["version.promoted", "rollout.aborted", "rollout.advanced", "finding.performance_drop", "label.put"]
    assert [present.tone(kind) for kind in kinds] == ["good", "bad", "warn", "bad", ""]


def test_spark_spans_its_box() -> None:
    drawn = present.spark([1.0, 3.0, float("nan"), 2.0], reference=3.0)
    assert drawn == {"points": "0.00,28.0 50.00,2.0 100.00,15.0", "base": 2.0}
    assert present.spark([1.0]) is None
