"""Evaluation, comparison and gates: the numbers are right, the intervals decide, the sentences say why."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from modelkeep.core.errors import Invalid
from modelkeep.spec.expressions import parse_gate
from modelkeep.stats.outputs import Outputs
from modelkeep.train.compare import Comparison, compare
from modelkeep.train.evaluate import Evaluation, evaluate
from modelkeep.train.gates import check, compared_metrics, slice_columns
from modelkeep.train.results import GateResult
from modelkeep.train.slices import groups

CLASSES = np.array([False, True])


def answers(score) -> Outputs:
    return Outputs(label=score > 0.5, probability=np.column_stack([1 - score, score]), classes=CLASSES)


def world(rows: int = 3000, seed: int = 0, *, skill: float = 1.0):
    """Truth, a table with a carrier, a score of the given skill; for carrier ``XX`` the score says nothing."""
    rng = np.random.default_rng(seed)
    carrier = rng.choice(["AA", "UA", "XX", "ZZ"], rows, p=[0.5, 0.29, 0.2, 0.01])
    y = rng.random(rows) < 0.4
    shift = np.where(carrier == "XX", 0.0, skill * (y - 0.5))
    score = 1 / (1 + np.exp(-(2 * shift + rng.normal(size=rows))))
    table = pa.table({"carrier": carrier, "distance": rng.normal(size=rows), "y": y})
    return y, table, score


def gate(text: str, evaluation, comparison=None, operational=None) -> GateResult:
    (result,) = check([parse_gate(text)], evaluation, comparison, operational)
    return result


def test_an_evaluation_has_metrics_slices_and_curves_and_survives_json():
    y, table, score = world()
    found = evaluate(y, answers(score), "classification", table, ["carrier", "distance"])
    auc = found.metrics["roc_auc"]
    assert auc.value == pytest.approx(roc_auc_score(y, score))
    assert auc.low < auc.value < auc.high
    assert found.metric == "roc_auc"
    assert [group.value for group in found.slices["carrier"]] == ["AA", "UA", "XX"], "ZZ has too few rows"
    xx = table["carrier"].to_numpy() == "XX"
    theirs = found.slices["carrier"][2]
    assert theirs.rows == xx.sum()
    assert theirs.metrics["roc_auc"].value == pytest.approx(roc_auc_score(y[xx], score[xx]))
    assert theirs.metrics["roc_auc"].low < 0.5 < theirs.metrics["roc_auc"].high
    assert len(found.slices["distance"]) == 4
    assert np.sum(found.confusion["counts"]) == len(y)
    assert found.roc["True"]["x"][-1] == found.roc["True"]["y"][-1] == 1
    assert sum(found.calibration["True"]["rows"]) == len(y)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found


def test_regression_has_residuals_and_no_curves():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=1000)
    y = predicted + 0.5
    found = evaluate(y, Outputs(value=predicted), "regression")
    assert found.metrics["mae"].value == pytest.approx(0.5)
    assert found.residuals["q50"] == pytest.approx([0.5] * 10)
    assert found.residuals["predicted"] == sorted(found.residuals["predicted"])
    assert found.roc == {} and found.confusion == {}


def test_undefined_metrics_are_none_and_never_pass():
    _, _, score = world(300)
    found = evaluate(np.ones(300, dtype=bool), answers(score), "classification")
    assert found.metrics["roc_auc"].value is None
    assert not gate("roc_auc >= 0", found).passed
    assert not gate("roc_auc <= 1", found).passed
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found


def test_an_anomaly_score_is_ranked_but_not_read_as_probability():
    rng = np.random.default_rng(0)
    y = rng.random(500) < 0.1
    score = rng.random(500) * 0.3 + 0.3 * y + 0.3
    outputs = Outputs(label=score > 0.7, probability=score, classes=CLASSES, value=score)
    found = evaluate(y, outputs, "anomaly")
    assert found.metrics["roc_auc"].value > 0.9
    assert "log_loss" not in found.metrics
    assert evaluate(None, outputs, "anomaly").metrics == {}


def test_groups_name_missing_values_and_cut_numbers_of_many_values():
    rng = np.random.default_rng(0)
    column = pa.chunked_array([["a"] * 150, [None] * 120, ["b"] * 20, ["a"] * 10])
    numbers = pa.array([*rng.normal(size=280), *[None] * 20])
    table = pa.table(
        {"c": column, "n": numbers, "d": pa.array(["x"] * 300).dictionary_encode(), "i": [1, 2] * 150}
    )
    assert {value: len(rows) for value, rows in groups(table, "c").items()} == {"a": 160, "(missing)": 120}
    assert set(groups(table, "c")["a"]) == {*range(150), *range(290, 300)}
    quartiles = groups(table, "n", enough=1)
    assert sorted(len(rows) for rows in quartiles.values()) == [20, 70, 70, 70, 70]
    assert len(quartiles["(missing)"]) == 20
    assert list(groups(table, "d")) == ["x"]
    assert list(groups(table, "i")) == ["1", "2"]
    with pytest.raises(Invalid, match="no column 'zzz' to slice by"):
        groups(table, "zzz")


def test_a_plain_gate_compares_the_value_and_shows_the_interval():
    y, _, score = world()
    found = evaluate(y, answers(score), "classification")
    passed = gate("roc_auc >= 0.6", found)
    assert passed.passed and passed.rows == 3000 and "95%" in passed.evidence and "3,000 rows" in passed.evidence
    failed = gate("roc_auc >= 0.99", found)
    assert not failed.passed and failed.value == found.metrics["roc_auc"].value and failed.needed == 0.99
    assert gate("brier <= 0.3", found).passed


def test_a_sliced_gate_names_the_worst_slice():
    y, table, score = world()
    found = evaluate(y, answers(score), "classification", table, ["carrier"])
    result = gate("slice(carrier).roc_auc >= 0.6", found)
    assert not result.passed
    assert "carrier = XX" in result.evidence
    assert result.rows == found.slices["carrier"][2].rows
    assert gate("slice(carrier).roc_auc >= 0.4", found).passed
    few = evaluate(y[:50], answers(score[:50]), "classification", table.slice(0, 50), ["carrier"])
    assert not gate("slice(carrier).roc_auc >= 0.1", few).passed


def test_a_champion_gate_needs_the_interval_not_luck():
    y, _, good = world(skill=1.0)
    noisy = np.clip(good + np.random.default_rng(9).normal(scale=0.02, size=len(y)), 0, 1)
    weak = np.clip(good + np.random.default_rng(9).normal(scale=0.5, size=len(y)), 0, 1)
    found = evaluate(y, answers(noisy), "classification")
    near = compare(y, answers(good), answers(noisy), "classification", ["roc_auc"])
    assert near.metrics["roc_auc"].value == pytest.approx(roc_auc_score(y, noisy) - roc_auc_score(y, good))
    assert gate("roc_auc >= champion.roc_auc - 0.01", found, near).passed
    strict = gate("roc_auc > champion.roc_auc + 0", found, near)
    assert not strict.passed
    assert strict.confidence == 0.95 and "paired on 3,000 rows" in strict.evidence
    worse = compare(y, answers(good), answers(weak), "classification", ["roc_auc", "log_loss"])
    assert not gate("roc_auc >= champion.roc_auc - 0.01", found, worse).passed
    assert not gate("log_loss <= champion.log_loss + 0.01", found, worse).passed
    better = compare(y, answers(weak), answers(good), "classification")
    assert gate("roc_auc > champion.roc_auc", found, better).passed
    assert gate("log_loss < champion.log_loss", found, better).passed
    few = slice(0, 60)
    unsure = compare(y[few], answers(good[few]), answers(noisy[few]), "classification", ["accuracy"])
    assert unsure.metrics["accuracy"].value is not None
    assert not gate("accuracy >= champion.accuracy + 0.05", found, unsure).passed
    assert msgspec.json.decode(msgspec.json.encode(better), type=Comparison) == better


def test_equal_models_are_passed_wrongly_no_more_often_than_stated():
    """Type I error of 'better than the champion' when both are equally good: at most about 5%."""
    wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y = rng.random(200) < 0.5
        one, two = (1 / (1 + np.exp(-(2 * (y - 0.5) + rng.normal(size=200)))) for _ in range(2))
        found = evaluate(y, answers(two), "classification", replicates=2)
        difference = compare(y, answers(one), answers(two), "classification", ["brier"], replicates=200)
        wrong += gate("brier < champion.brier", found, difference).passed
    assert wrong <= 20, "binomial(200, 0.05) exceeds 20 with probability 0.0004"
    assert wrong >= 2, "and it is not so strict that nothing ever passes"


def test_a_champion_gate_by_slice_finds_the_slice_that_lost():
    y, table, score = world(6000)
    carrier = table["carrier"].to_numpy()
    broken = np.where(carrier == "UA", np.random.default_rng(3).random(len(y)), score)
    found = evaluate(y, answers(broken), "classification", table, ["carrier"])
    gates = [parse_gate("slice(carrier).roc_auc >= champion.slice(carrier).roc_auc - 0.05")]
    assert slice_columns(gates) == ["carrier"] and compared_metrics(gates) == ["roc_auc"]
    difference = compare(
        y, answers(score), answers(broken), "classification", ["roc_auc"], table=table, slices=["carrier"]
    )
    (result,) = check(gates, found, difference)
    assert not result.passed and "carrier = UA" in result.evidence
    same = compare(y, answers(score), answers(score), "classification", table=table, slices=["carrier"])
    assert check(gates, found, same)[0].passed


def test_without_a_champion_its_gates_pass_and_say_so():
    y, _, score = world(300)
    result = gate("roc_auc >= champion.roc_auc - 0.005", evaluate(y, answers(score), "classification"))
    assert result.passed and result.evidence.startswith("no champion yet")


def test_latency_gates_read_what_was_measured():
    y, _, score = world(300)
    found = evaluate(y, answers(score), "classification")
    assert gate("latency_ms.p99 <= 5", found, operational={"latency_ms.p99": 3.2}).passed
    assert not gate("latency_ms.p99 <= 5", found, operational={"latency_ms.p99": 5.2}).passed
    missing = gate("latency_ms.p99 <= 5", found)
    assert not missing.passed and "was not measured" in missing.evidence
    assert not gate("latency_ms.p99 <= 5", found, operational={"latency_ms.p99": math.nan}).passed


def test_gates_this_model_cannot_meet_are_invalid_all_at_once():
    y, _, score = world(300)
    labels_only = Outputs(label=score > 0.5, classes=CLASSES)
    found = evaluate(y, labels_only, "classification", metric="f1")
    gates = [parse_gate(text) for text in ("roc_auc >= 0.5", "f1 >= 0", "rmse <= 3", "slice(carrier).f1 >= 0")]
    with pytest.raises(Invalid) as caught:
        check(gates, found, None)
    assert [item.path for item in caught.value.problems] == ["gates[0]", "gates[2]", "gates[3]"]
    with pytest.raises(Invalid, match="only the same metric can be compared"):
        check([parse_gate("f1 >= champion.accuracy")], found, None)
