"""Curves: their area is the metric, their points are scikit-learn's, their size is bounded."""

import numpy as np
import pytest
from sklearn import metrics as sk

from modelkeep.stats.curves import POINTS, calibration_curve, confusion, pr_curve, roc_curve
from modelkeep.stats.metrics import Outputs, evaluate


def sample(rows, size=2, seed=0, digits=6):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, size, rows)
    raw = generator.gamma(1, size=(rows, size)) + np.eye(size)[y]
    probability = (raw / raw.sum(axis=1, keepdims=True)).round(digits)
    return y, Outputs(label=probability.argmax(axis=1), probability=probability, classes=np.arange(size))


@pytest.mark.parametrize("rows", [50, 20_000])
def test_roc_curve_keeps_its_area(rows):
    y, out = sample(rows)
    curve = roc_curve(y, out)["1"]
    assert len(curve["x"]) <= POINTS
    assert (curve["x"][0], curve["y"][0], curve["x"][-1], curve["y"][-1]) == (0, 0, 1, 1)
    assert sk.auc(curve["x"], curve["y"]) == pytest.approx(evaluate("roc_auc", y, out), abs=1e-4)


def test_pr_curve_points_are_scikit_learns():
    y, out = sample(60, digits=1)
    curve = pr_curve(y, out)["1"]
    precision, recall, _ = sk.precision_recall_curve(y, out.probability[:, 1])
    expected = set(zip(recall.round(9), precision.round(9), strict=True))
    assert set(zip(np.round(curve["x"], 9), np.round(curve["y"], 9), strict=True)) <= expected
    assert curve["x"] == sorted(curve["x"])
    assert len(pr_curve(*sample(30_000))["1"]["x"]) <= POINTS


def test_confusion_counts():
    y, out = sample(500, size=3)
    assert confusion(y, out) == {
        "classes": ["0", "1", "2"],
        "counts": sk.confusion_matrix(y, out.label).tolist(),
    }


def test_calibration_curve_of_an_honest_model_is_the_diagonal():
    generator = np.random.default_rng(3)
    stated = generator.random(50_000)
    y = (generator.random(50_000) < stated).astype(int)
    curve = calibration_curve(y, Outputs(probability=stated, classes=np.array([0, 1])))["1"]
    assert np.abs(np.subtract(curve["x"], curve["y"])).max() < 0.03
    assert sum(curve["rows"]) == 50_000


def test_one_curve_per_class_that_can_be_ranked():
    y, out = sample(200, size=4)
    assert set(roc_curve(y, out)) == {"0", "1", "2", "3"}
    few = y != 2
    assert set(roc_curve(y[few], out.take(few))) == {"0", "1", "3"}
    assert roc_curve(np.zeros(5, int), sample(5)[1]) == {}
