"""Metrics summed over parts are those of all rows together."""

from __future__ import annotations

import itertools
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.stats.metrics import applicable, evaluate
from modelkeep.stats.outputs import Outputs
from modelkeep.train import evaluate as whole
from modelkeep.train.evaluate_parts import Sums, completed, finish, partial

ROWS = 300


def answers(task: str, seed: int) -> tuple[np.ndarray, Outputs]:
    rng = np.random.default_rng(seed)
    if task == "regression":
        y = rng.normal(3, 2, ROWS)
        return y, Outputs(value=y + rng.normal(size=ROWS))
    classes = np.array(["a", "b"] if task == "two" else ["a", "b", "c"])
    probability = rng.dirichlet(np.ones(len(classes)), ROWS)
    y = classes[[rng.choice(len(classes), p=row) for row in probability]]
    return y, Outputs(label=classes[probability.argmax(axis=1)], probability=probability, classes=classes)


@pytest.mark.parametrize("task", ["two", "three", "regression"])
@given(seed=st.integers(0, 5), cuts=st.lists(st.integers(0, ROWS), max_size=4))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_sums_over_any_parts_are_those_of_the_whole(task: str, seed: int, cuts: list[int]) -> None:
    y, outputs = answers(task, seed)
    names = applicable("regression" if task == "regression" else "classification", outputs)
    edges = [0, *sorted(cuts), ROWS]
    parts = [partial(y[a:b], outputs.take(slice(a, b)), names) for a, b in itertools.pairwise(edges)]
    found = finish(reduce(Sums.merge, parts), names, None if task == "regression" else outputs.classes.tolist())
    missing = set(names) - set(found)
    assert missing == (
        {"calibration_error", "roc_auc", "pr_auc"}
        if task == "three"
        else {"calibration_error"}
        if task == "two"
        else set()
    )
    for name, value in found.items():
        near = 1e-4 if name in ("roc_auc", "pr_auc") else 1e-9
        assert value == pytest.approx(evaluate(name, y, outputs), rel=near, abs=near), name


def test_a_sample_is_completed_by_what_is_known_of_all_rows() -> None:
    y, outputs = answers("two", 0)
    sample = whole.evaluate(y[:75], outputs.take(slice(0, 75)), "classification")
    found = completed(sample, {"accuracy": 0.5}, ROWS)
    before, after = sample.metrics["accuracy"], found.metrics["accuracy"]
    assert (after.value, after.rows) == (0.5, ROWS)
    assert after.high - after.low == pytest.approx((before.high - before.low) / 2)
    assert found.metrics["calibration_error"] == sample.metrics["calibration_error"]
