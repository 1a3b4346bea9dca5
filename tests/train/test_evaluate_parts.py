"""Metrics summed over parts are those of all rows together."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuts import cuts
from modelkeep.stats.metrics import METRICS, applicable, evaluate
from modelkeep.stats.outputs import Outputs
from modelkeep.train import evaluate as whole
from modelkeep.train.evaluate_parts import RANKED, Sums, completed, finish, partial

ROWS = 300


TASKS = {"two": "ab", "three": "abc", "many": "abcdefghijkl"}


def answers(task: str, seed: int) -> tuple[np.ndarray, Outputs]:
    rng = np.random.default_rng(seed)
    if task == "regression":
        y = rng.normal(3, 2, ROWS)
        return y, Outputs(value=y + rng.normal(size=ROWS))
    if task == "far":  # a target that varies little about a large mean, such as a time in seconds
        y = rng.normal(1.7e9, 2, ROWS)
        return y, Outputs(value=y + rng.normal(size=ROWS))
    if task == "constant":
        return np.full(ROWS, 0.1), Outputs(value=rng.normal(size=ROWS))
    classes = np.array(list(TASKS.get(task, "abcd")))
    least = 1 if task == "sorted" else 0.2
    probability = rng.dirichlet(np.linspace(least, 2, len(classes)), ROWS)
    y = classes[[rng.choice(len(classes), p=row) for row in probability]]
    if task == "sorted":  # most parts hold one class alone
        y = np.sort(y)
    if task == "labels":
        return y, Outputs(label=classes[probability.argmax(axis=1)], classes=classes)
    return y, Outputs(label=classes[probability.argmax(axis=1)], probability=probability, classes=classes)


REGRESSIONS = ["regression", "far", "constant"]
CLASSIFICATIONS = [*TASKS, "sorted", "labels"]


def told(task: str, outputs: Outputs) -> list[str]:
    return applicable("regression" if task in REGRESSIONS else "classification", outputs)


@pytest.mark.parametrize("task", [*REGRESSIONS, *CLASSIFICATIONS])
@given(seed=st.integers(0, 5), parts=cuts(ROWS))
@settings(max_examples=10, deadline=None)
def test_sums_over_any_parts_are_those_of_the_whole(task: str, seed: int, parts: list[slice]) -> None:
    """To a relative 1e-9; rankings to 1e-4, for scores are counted by steps; where the target's mean is a billion
    times its spread, to 1e-6: float64 holds no more of the spread."""
    y, outputs = answers(task, seed)
    names = told(task, outputs)
    classes = None if outputs.classes is None else outputs.classes.tolist()
    found = finish(reduce(Sums.merge, (partial(y[a], outputs.take(a), names) for a in parts)), names, classes)
    assert set(found) == set(names)
    for name, value in found.items():
        near = 1e-4 if name in ("roc_auc", "pr_auc") else 1e-6 if task == "far" else 1e-9
        wanted = evaluate(name, y, outputs)
        assert value == pytest.approx(wanted, rel=near, abs=near, nan_ok=True), name


def test_every_metric_is_tried() -> None:
    tried = (told(task, answers(task, 0)[1]) for task in (*REGRESSIONS, *CLASSIFICATIONS))
    assert set().union(*tried) == set(METRICS)


def test_ranking_many_rows_is_exact_to_a_step() -> None:
    """Most scores are near 0 or 1, where steps are few."""
    rng = np.random.default_rng(3)
    classes = np.array(list("abcdefgh"))
    probability = rng.dirichlet(np.geomspace(0.02, 0.5, len(classes)), 40_000)
    y = classes[(probability.cumsum(axis=1) > rng.random((len(probability), 1))).argmax(axis=1)]
    outputs = Outputs(label=classes[probability.argmax(axis=1)], probability=probability, classes=classes)
    names = ["roc_auc", "pr_auc", "calibration_error"]
    parts = [
        partial(y[at : at + 9_000], outputs.take(slice(at, at + 9_000)), names) for at in range(0, 40_000, 9_000)
    ]
    found = finish(reduce(Sums.merge, parts), names, classes.tolist())
    for name in names:
        assert found[name] == pytest.approx(evaluate(name, y, outputs), abs=2e-4), name


def test_a_class_without_rows_is_left_out_as_it_is_of_the_whole() -> None:
    y, outputs = answers("many", 1)
    kept = y != "l"
    y, outputs = y[kept], outputs.take(kept)
    names = ["roc_auc", "pr_auc"]
    found = finish(partial(y, outputs, names), names, outputs.classes.tolist())
    for name in names:
        assert found[name] == pytest.approx(evaluate(name, y, outputs), abs=1e-4), name


def test_a_class_that_the_model_does_not_know_leaves_all_to_the_sample() -> None:
    y, outputs = answers("two", 0)
    names = applicable("classification", outputs)
    parts = [partial(y[:100], outputs.take(slice(0, 100)), names)]
    parts.append(partial(np.array(["a", "unseen"]), outputs.take(slice(100, 102)), names))
    parts.append(partial(y[102:], outputs.take(slice(102, ROWS)), names))
    merged = reduce(Sums.merge, parts)
    assert merged.rows == ROWS
    assert finish(merged, names, outputs.classes.tolist()) == {}


def test_more_classes_than_can_be_ranked_leave_rankings_to_the_sample() -> None:
    rng = np.random.default_rng(0)
    classes = np.arange(RANKED + 1)
    probability = rng.dirichlet(np.ones(len(classes)), ROWS)
    outputs = Outputs(label=classes[probability.argmax(axis=1)], probability=probability, classes=classes)
    y = rng.integers(0, len(classes), ROWS)
    names = ["roc_auc", "calibration_error"]
    found = finish(partial(y, outputs, names), names, classes.tolist())
    assert found == {"calibration_error": pytest.approx(evaluate("calibration_error", y, outputs))}


def test_a_sample_is_completed_by_what_is_known_of_all_rows() -> None:
    y, outputs = answers("two", 0)
    sample = whole.evaluate(y[:75], outputs.take(slice(0, 75)), "classification")
    found = completed(sample, {"accuracy": 0.5}, ROWS)
    before, after = sample.metrics["accuracy"], found.metrics["accuracy"]
    assert (after.value, after.rows) == (0.5, ROWS)
    assert after.high - after.low == pytest.approx((before.high - before.low) / 2)
    assert found.metrics["calibration_error"] == sample.metrics["calibration_error"]
