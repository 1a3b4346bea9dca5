"""Derivatives against differences, compiled loops against NumPy, and parts against the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from modelkeep.train.linear import kernels
from modelkeep.train.linear.blocks import MemoryPart, Split, held_out, in_memory, kept
from modelkeep.train.linear.descent import pseudo_gradient
from modelkeep.train.linear.losses import CODES, Objective, of_margins, of_rows, penalty, probabilities
from modelkeep.train.linear.table import Moves, Steps, Table, _order, averaged, learn
from modelkeep.train.linear.threads import Threads
from modelkeep.train.linear.whole import Wholes

LOSSES = sorted(CODES)
seeds = st.integers(0, 2**32 - 1)


def some(seed: int, loss: str, rows: int = 12, features: int = 4, **keywords):
    rng = np.random.default_rng(seed)
    outputs = 3 if loss == "softmax" else 1
    x = rng.normal(size=(rows, features)) * (rng.random((rows, features)) < 0.6)
    if loss == "squared":
        y = rng.normal(size=rows)
    else:
        y = rng.integers(0, 3, rows).astype(float) if outputs > 1 else rng.choice([-1.0, 1.0], rows)
    goal = Objective(loss, 0.05, 0.1, outputs, **keywords)
    return goal, rng.normal(size=(features + 1, outputs)), x, y


@settings(max_examples=25, deadline=None)
@given(seed=seeds, loss=st.sampled_from(LOSSES), smoothing=st.sampled_from([0.0, 0.5]))
def test_gradients_are_those_of_differences(seed, loss, smoothing):
    goal, weights, x, y = some(seed, loss, smoothing=smoothing)
    analytic = of_rows(goal, weights, x, y).gradient
    step = 1e-6
    for place in np.ndindex(weights.shape):
        up, down = weights.copy(), weights.copy()
        up[place] += step
        down[place] -= step
        slope = (of_rows(goal, up, x, y, slope=False).loss - of_rows(goal, down, x, y, slope=False).loss) / (
            2 * step
        )
        assert analytic[place] == pytest.approx(
            slope, abs=1e-4, rel=1e-4
        )  # the hinge may have a corner in between


@settings(max_examples=25, deadline=None)
@given(seed=seeds, loss=st.sampled_from(LOSSES))
def test_the_compiled_losses_are_those_of_numpy(seed, loss):
    goal, weights, x, y = some(seed, loss)
    margins = x @ weights[:-1] + weights[-1]
    total, slope = 0.0, np.empty(goal.outputs)
    expected, by_margin = of_margins(goal, margins, y)
    for row in range(len(y)):
        total += kernels.slopes(goal.code, margins[row], y[row], slope)
        np.testing.assert_allclose(slope, by_margin[row], rtol=1e-12, atol=1e-15)
    assert total == pytest.approx(expected, rel=1e-12)


def test_losses_stay_finite_far_out():
    for loss in ("logistic", "softmax"):
        goal = Objective(loss, 0.0, 0.0, 3 if loss == "softmax" else 1)
        margins = np.array([[1e4, -1e4, 0.0][: goal.outputs], [-1e4, 1e4, 0.0][: goal.outputs]])
        lost, slope = of_margins(goal, margins, np.array([1.0, 1.0]))
        assert np.isfinite(lost)
        assert np.isfinite(slope).all()
        assert np.isfinite(probabilities(loss, margins if goal.outputs > 1 else margins[:, 0])).all()


@settings(max_examples=20, deadline=None)
@given(
    seed=seeds, steps=st.sampled_from(["adagrad", "constant"]), ratio=st.sampled_from([(0.0, 0.01), (0.05, 0.0)])
)
def test_a_lazy_penalty_is_the_one_of_every_step(seed, steps, ratio):
    """With L1, exactly; with L2 up to the square of what a feature missed."""
    rng = np.random.default_rng(seed)
    goal, how = Objective("logistic", *ratio), Steps(steps, 0.01)
    x = rng.normal(size=(30, 5)) * (rng.random((30, 5)) < 0.3)
    y = rng.choice([-1.0, 1.0], 30)
    lazy = Table.fresh(5, 1)
    learn(lazy, goal, how, [(sparse.csr_matrix(x), y)], None)
    lazy.settle(goal, how)
    eager = Table.fresh(5, 1)
    for row in range(30):
        learn(eager, goal, how, [(sparse.csr_matrix(x[row : row + 1]), y[row : row + 1])], None)
        eager.settle(goal, how)
    np.testing.assert_allclose(lazy.cells, eager.cells, rtol=1e-3, atol=1e-4 if ratio[1] else 1e-9)


@pytest.mark.parametrize(
    ("outputs", "l1", "kind"), [(1, 0.0, "adagrad"), (1, 0.01, "constant"), (3, 0.0, "adagrad")]
)
def test_a_round_of_two_workers_is_their_mean(outputs, l1, kind):
    """Against NumPy: weights by the workers that had a gradient, or by both with L1; sums of squares add up."""
    rng = np.random.default_rng(0)
    goal, how = Objective("softmax" if outputs > 1 else "logistic", l1, 0.01, outputs), Steps(kind)
    fresh = Table.fresh(50, outputs)
    fresh.cells[:, :outputs] = rng.normal(size=(51, outputs))
    start = np.ascontiguousarray(fresh.packed), fresh.clock
    ends = [Table.unpacked(*start, adaptive=how.adaptive) for _ in range(2)]
    moves = []
    for skip, end in enumerate(ends, 2):  # every second and every third feature, so that some are in both
        end.clock += 2
        end.cells[::skip, : 2 * outputs] += rng.random((len(end.cells[::skip]), 2 * outputs))
        end.cells[:, -1] = 1 / np.sqrt(end.cells[:, 2 * outputs - 1]) if how.adaptive else 1.0
        moves.append(Moves.between(start, Table(end.cells.copy(), end.clock), goal, how, 1, 1.0))
        plain = Table(end.cells.copy(), end.clock)
        plain.settle(goal, how, np.arange(50))  # as the shards do
        end.settle(goal, how)
        np.testing.assert_allclose(end.cells, plain.cells, rtol=1e-13)
    packed, clock = averaged(start, moves[0].plus(moves[1]), goal)
    change = sum(end.packed - start[0] for end in ends)
    had = sum((end.packed - start[0])[:, outputs:].max(axis=1) > 0 for end in ends)
    by = np.full(51, 2.0) if l1 else np.where(had > 0, had, 2.0)
    expected = start[0] + change / np.repeat([by, np.ones(51)], outputs, axis=0).T
    np.testing.assert_allclose(packed, expected, rtol=1e-13)
    assert clock.tolist() == [2.0, 2.0]
    found = Table.unpacked(packed, clock, adaptive=how.adaptive)
    np.testing.assert_allclose(found.cells[:, -1], 1 / np.sqrt(found.sums[:, -1]) if how.adaptive else 1.0)


def test_the_pseudo_gradient_is_zero_where_l1_holds_a_weight():
    goal = Objective("squared", 1.0, 0.0)
    weights = np.array([[0.0], [0.0], [0.5], [0.0]])
    slope = np.array([[0.9], [-1.5], [0.2], [0.3]])
    np.testing.assert_allclose(pseudo_gradient(goal, weights, slope), [[0.0], [-0.5], [1.2], [0.3]])
    assert penalty(goal, weights) == 0.5


@settings(max_examples=25, deadline=None)
@given(seed=seeds, loss=st.sampled_from(LOSSES), parts=st.integers(1, 9), workers=st.integers(1, 3))
def test_sums_do_not_depend_on_the_parts(seed, loss, parts, workers):
    goal, weights, x, y = some(seed, loss, rows=37)
    whole = of_rows(goal, weights, x, y)
    with Threads(workers) as engine, Wholes(in_memory(x, y, parts), engine, Split()).of(goal) as sums:
        divided = sums(weights)
    assert divided.rows == whole.rows == 37
    assert divided.loss == pytest.approx(whole.loss, rel=1e-12)
    np.testing.assert_allclose(divided.gradient, whole.gradient, rtol=1e-10, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 3000), seed=seeds)
def test_a_walk_visits_every_row_once(rows, seed):
    walk = _order(rows, np.random.default_rng(seed))
    visited = [walk[0]]
    while len(visited) < rows:
        visited.append(kernels.next_row(visited[-1], walk, rows))
    assert sorted(visited) == list(range(rows))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 200), fraction=st.floats(0.01, 0.5), most=st.integers(0, 50), thin=st.booleans())
def test_held_out_rows_and_the_others_are_all_rows_once(rows, fraction, most, thin):
    x = np.arange(1.0, rows + 1)[:, None] * [1.0, 0.0]
    part = MemoryPart(sparse.csr_matrix(x) if thin else x, x[:, 0], 0, rows)
    split = Split(fraction, most)
    seen = [
        float(value) for blocks in (kept(part(), split), held_out(part(), split)) for _, y in blocks for value in y
    ]
    assert sorted(seen) == x[:, 0].tolist()
    for matrix, y in held_out(part(), split):
        assert len(y) <= most
        assert np.asarray(matrix @ np.array([1.0, 1.0])).tolist() == y.tolist()


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-307, 1e307))
def test_an_inverse_root_is_as_good_as_double_precision(x):
    assert kernels.inverse_root(x) == pytest.approx(1 / np.sqrt(x), rel=1e-13)


@pytest.mark.parametrize("largest", [1.0, 1e25, 1e35, 1e300])
@pytest.mark.parametrize("count", [1, 7, 30, 100])
def test_a_row_moves_by_the_roots_of_its_own_sums_however_many_and_large(count, largest):
    rng = np.random.default_rng(count)
    values = rng.normal(size=count) * np.sqrt(largest)
    columns = rng.integers(0, 2 * count, count).astype(np.int32)  # some of them twice
    table = np.zeros((2 * count + 1, 4))
    table[:, 1] = 1e-8
    expected = table.copy()
    for j, value in zip(columns, values, strict=True):
        expected[j, 1] += value * value
        expected[j, 0] -= 0.1 * value / np.sqrt(expected[j, 1])
    csr = (np.array([0, count], np.int32), columns, values)
    kernels.moved_all(csr, np.uint64(0), np.uint64(count), table, 1.0, 0.1, np.empty(count))
    once = np.bincount(columns, minlength=2 * count + 1)[:, None] < 2
    checked = once | (largest < 1e30)  # sums this large that come twice in a row count once for the root
    np.testing.assert_allclose(table[:, :2][checked[:, 0]], expected[:, :2][checked[:, 0]], rtol=1e-12, atol=1e-13)


def test_the_loss_of_many_rows_is_the_sum_of_their_losses():
    """Logarithms are taken of products of many rows, which must not overflow."""
    rows = 5_000
    csr = (np.arange(rows + 1, dtype=np.int32), np.zeros(rows, np.int32), np.linspace(-40, 40, rows))
    y = np.where(np.arange(rows) % 3, 1.0, -1.0)
    table = np.array([[1.0, 0.1, 0.0, 1 / np.sqrt(0.1)], [0.5, 0.1, 0.0, 1 / np.sqrt(0.1)]])
    how = (kernels.LOGISTIC, 0.0, 0.0, True, 0.0, 0.0, True)
    total = kernels.rows_sparse(csr, y, (0, 1, 1), table, np.zeros(2), how)
    assert total == pytest.approx(np.logaddexp(0, -y * (csr[2] + 0.5)).sum(), rel=1e-12)
