"""Every metric against scikit-learn, with and without weights, and where it is undefined."""

import numpy as np
import pytest
from sklearn import metrics as sk

from modelkeep.core.errors import Invalid
from modelkeep.stats.metrics import METRICS, Outputs, applicable, evaluate

AVERAGES = {
    f"{part}_{average}": (part, average)
    for part in ("precision", "recall", "f1")
    for average in ("macro", "micro", "weighted")
}
SCORES = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
CLASS_SETS = {"text": np.array(["ant", "bee", "cat", "dog"]), "int": np.array([1, 4, 5, 9])}


def sample(classes, rows, seed, ties=False):
    generator = np.random.default_rng(seed)
    y = generator.choice(len(classes), rows)
    raw = generator.gamma(1.0, size=(rows, len(classes)))
    raw[np.arange(rows), y] += 0.7
    probability = raw / raw.sum(axis=1, keepdims=True)
    if ties:
        probability = np.round(probability * 8 + 0.5)
        probability /= probability.sum(axis=1, keepdims=True)
    label = classes[probability.argmax(axis=1)]
    weights = generator.integers(0, 4, rows).astype(float)
    return classes[y], Outputs(label=label, probability=probability, classes=classes), weights


def binary_expectations(y, out, w):
    positive = out.classes[1]
    score = out.probability[:, 1]
    truth = (y == positive).astype(int)
    found = {
        name: score_of(y, out.label, sample_weight=w, pos_label=positive) for name, score_of in SCORES.items()
    }
    found["roc_auc"] = sk.roc_auc_score(truth, score, sample_weight=w)
    found["pr_auc"] = sk.average_precision_score(truth, score, sample_weight=w)
    found["brier"] = sk.brier_score_loss(truth, score, sample_weight=w)
    return found


def many_expectations(y, out, w):
    found = {name: score_of(y, out.label, sample_weight=w, average="macro") for name, score_of in SCORES.items()}
    hot = (y[:, None] == out.classes).astype(int)
    found["roc_auc"] = sk.roc_auc_score(y, out.probability, multi_class="ovr", average="macro", sample_weight=w)
    found["pr_auc"] = sk.average_precision_score(hot, out.probability, average="macro", sample_weight=w)
    found["brier"] = np.average(((out.probability - hot) ** 2).sum(axis=1), weights=w)
    for k in (2, 3):
        found[f"top_{k}_accuracy"] = sk.top_k_accuracy_score(y, out.probability, k=k, sample_weight=w)
    return found


def common_expectations(y, out, w):
    found = {
        name: SCORES[part](y, out.label, average=average, sample_weight=w)
        for name, (part, average) in AVERAGES.items()
    }
    found["accuracy"] = sk.accuracy_score(y, out.label, sample_weight=w)
    found["balanced_accuracy"] = sk.balanced_accuracy_score(y, out.label, sample_weight=w)
    found["mcc"] = sk.matthews_corrcoef(y, out.label, sample_weight=w)
    found["log_loss"] = sk.log_loss(y, out.probability, labels=out.classes, sample_weight=w)
    return found


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["text", "int"])
def test_classification_equals_scikit_learn(kind, size, weighted, ties):
    y, out, weights = sample(CLASS_SETS[kind][:size], 500, seed=size, ties=ties)
    w = weights if weighted else None
    expected = common_expectations(y, out, w) | (binary_expectations if size == 2 else many_expectations)(
        y, out, w
    )
    found = {name: evaluate(name, y, out, w) for name in expected}
    assert found == pytest.approx(expected, abs=1e-12, rel=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_regression_equals_scikit_learn(weighted):
    generator = np.random.default_rng(3)
    y = generator.normal(50, 9, 400)
    value = y + generator.normal(0, 4, 400)
    w = generator.integers(0, 4, 400).astype(float) if weighted else None
    expected = {
        "mse": sk.mean_squared_error(y, value, sample_weight=w),
        "rmse": sk.root_mean_squared_error(y, value, sample_weight=w),
        "mae": sk.mean_absolute_error(y, value, sample_weight=w),
        "mape": sk.mean_absolute_percentage_error(y, value, sample_weight=w),
        "r2": sk.r2_score(y, value, sample_weight=w),
        "pinball": sk.mean_pinball_loss(y, value, sample_weight=w),
    }
    found = {name: evaluate(name, y, Outputs(value=value), w) for name in expected}
    assert found == pytest.approx(expected, abs=1e-12, rel=1e-12)


def test_calibration_error_of_known_cases():
    stated = np.array([0.9] * 10 + [0.1] * 10)
    honest = np.array([1] * 9 + [0] + [1] + [0] * 9)
    boasting = np.array([1] * 5 + [0] * 5 + [0] * 10)
    out = Outputs(label=(stated > 0.5).astype(int), probability=stated, classes=np.array([0, 1]))
    assert evaluate("calibration_error", honest, out) == pytest.approx(0, abs=1e-12)
    assert evaluate("calibration_error", boasting, out) == pytest.approx((0.4 + 0.1) / 2)


@pytest.mark.parametrize("name", [n for n, m in METRICS.items() if m.task == "classification"])
def test_no_rows_is_not_known(name):
    classes = np.array([0, 1, 2])
    out = Outputs(label=np.array([], int), probability=np.empty((0, 3)), classes=classes)
    assert np.isnan(evaluate(name, np.array([], int), out))


@pytest.mark.parametrize("name", ["roc_auc", "mcc", "balanced_accuracy"])
def test_one_class_is_not_known(name):
    out = Outputs(label=np.array([0, 0, 1]), probability=np.array([0.1, 0.2, 0.7]), classes=np.array([0, 1]))
    assert np.isnan(evaluate(name, np.zeros(3, int), out))


def test_recall_and_r2_without_anything_to_find_are_not_known():
    out = Outputs(label=np.array([0, 0]), probability=np.array([0.1, 0.2]), classes=np.array([0, 1]))
    assert np.isnan(evaluate("recall", np.zeros(2, int), out))
    assert np.isnan(evaluate("f1", np.zeros(2, int), out))
    assert np.isnan(evaluate("r2", np.full(5, 3.1), Outputs(value=np.arange(5.0))))


def test_a_model_that_never_says_yes_has_recall_and_f1_of_zero():
    out = Outputs(label=np.array([0, 0, 0]), classes=np.array([0, 1]))
    assert [evaluate(name, np.array([0, 1, 1]), out) for name in ("precision", "recall", "f1")] == [0, 0, 0]


def test_a_class_the_model_never_saw_counts_as_wrong():
    out = Outputs(label=np.array(["a", "b", "a"]), probability=np.eye(2)[[0, 1, 0]], classes=np.array(["a", "b"]))
    y = np.array(["a", "b", "z"])
    assert evaluate("accuracy", y, out) == pytest.approx(2 / 3)
    assert evaluate("log_loss", y, out) > 5


@pytest.mark.parametrize("truth", [[True, False, True], ["1", "0", "1"], [1.0, 0.0, 1.0]])
def test_labels_of_another_type_are_reconciled(truth):
    out = Outputs(label=np.array([1, 0, 0]), classes=np.array([0, 1]))
    assert evaluate("accuracy", np.array(truth), out) == pytest.approx(2 / 3)


def test_errors_say_what_to_do():
    out = Outputs(value=np.zeros(3))
    with pytest.raises(Invalid, match="roc_auc"):
        evaluate("roc_acu", np.zeros(3), out)
    with pytest.raises(Invalid, match="4 true values but 3 answers"):
        evaluate("mse", np.zeros(4), out)
    with pytest.raises(Invalid, match="no numbers"):
        evaluate("mse", np.zeros(3), Outputs(label=np.zeros(3)))


def test_applicable_knows_the_number_of_classes():
    two = Outputs(label=np.zeros(3), probability=np.zeros(3), classes=np.array([0, 1]))
    four = Outputs(label=np.zeros(3), probability=np.zeros((3, 4)), classes=np.arange(4))
    assert "f1_macro" not in applicable("classification", two)
    assert {"f1_macro", "top_3_accuracy"} <= set(applicable("classification", four))
    assert "top_5_accuracy" not in applicable("classification", four)
    assert applicable("regression", Outputs(value=np.zeros(2))) == ["mse", "rmse", "mae", "mape", "r2", "pinball"]
