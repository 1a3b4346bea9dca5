"""Every short name's estimator, as ONNX, says what scikit-learn says: mixed columns, holes, unseen categories."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from format_cases import INPUTS, features, table, target
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import (
    Lasso,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from modelkeep.formats.agreement import Agreement, compare
from modelkeep.formats.frames import columns_of
from modelkeep.formats.inference import infer
from modelkeep.formats.onnx.export import export
from modelkeep.train.linear.estimator import OutOfCoreClassifier, OutOfCoreRegressor

ROWS = 300

CLASSIFIERS = {
    "logistic_regression": LogisticRegression(max_iter=50),
    "ridge": RidgeClassifier(),
    "sgd": SGDClassifier(loss="log_loss", random_state=0),
    "sgd_hinge": SGDClassifier(random_state=0),
    "sgd_huber": SGDClassifier(loss="modified_huber", random_state=0),
    "out_of_core": OutOfCoreClassifier(passes=3),
    "out_of_core_logistic": OutOfCoreClassifier("logistic", passes=3),
    "out_of_core_hinge": OutOfCoreClassifier("hinge", passes=3),
    "gaussian_naive_bayes": GaussianNB(),
    "multinomial_naive_bayes": MultinomialNB(),
    "complement_naive_bayes": ComplementNB(),
    "bernoulli_naive_bayes": BernoulliNB(),
    "linear_svm": CalibratedClassifierCV(LinearSVC(random_state=0), ensemble=False, cv=3),
    "linear_svm_plain": LinearSVC(random_state=0),
    "svm": CalibratedClassifierCV(SVC(random_state=0), ensemble=False, cv=3),
    "svm_rbf": SVC(),
    "svm_poly": SVC(kernel="poly"),
    "svm_sigmoid": SVC(kernel="sigmoid"),
    "svm_ties": SVC(kernel="poly", degree=2, break_ties=True),
    "svm_one_against_one": SVC(decision_function_shape="ovo"),
    "calibrated_folds": CalibratedClassifierCV(GaussianNB(), cv=3),
    "decision_tree": DecisionTreeClassifier(random_state=0),
    "stump": DecisionTreeClassifier(max_depth=1, random_state=0),
    "random_forest": RandomForestClassifier(20, random_state=0),
    "extra_trees": ExtraTreesClassifier(20, random_state=0),
    "gradient_boosting": GradientBoostingClassifier(n_estimators=15, random_state=0),
    "hist_gradient_boosting": HistGradientBoostingClassifier(max_iter=15, random_state=0),
    "knn": KNeighborsClassifier(),
    "mlp": MLPClassifier((20,), max_iter=30, random_state=0),
    "mlp_tanh": MLPClassifier((8, 8), activation="tanh", max_iter=20, random_state=0),
    "discriminant": LinearDiscriminantAnalysis(),
}

REGRESSORS = {
    "linear": LinearRegression(),
    "ridge": Ridge(),
    "lasso": Lasso(),
    "sgd": SGDRegressor(alpha=0.01, eta0=1e-5, random_state=0),
    "out_of_core": OutOfCoreRegressor(method="full_batch"),
    "linear_svm": LinearSVR(random_state=0),
    "svm": SVR(),
    "decision_tree": DecisionTreeRegressor(random_state=0),
    "random_forest": RandomForestRegressor(20, random_state=0),
    "extra_trees": ExtraTreesRegressor(20, random_state=0),
    "gradient_boosting": GradientBoostingRegressor(n_estimators=15, random_state=0),
    "hist_gradient_boosting": HistGradientBoostingRegressor(max_iter=15),
    "hist_poisson": HistGradientBoostingRegressor(loss="poisson", max_iter=15),
    "knn": KNeighborsRegressor(),
    "mlp": MLPRegressor(hidden_layer_sizes=(20,), max_iter=30, random_state=0),
    "mlp_poisson": MLPRegressor("poisson", (6,), max_iter=10, random_state=0),
    "poisson": PoissonRegressor(alpha=100.0),
}


def agreement(estimator: Any, task: str, kinds: Any = (0, 1), transformer: Any = None) -> Agreement:
    data = table(ROWS)
    y = target(data, task, kinds)
    steps: list[tuple[str, Any]] = [("features", transformer or features())]
    if isinstance(estimator, MultinomialNB | ComplementNB):
        steps.append(("positive", MinMaxScaler()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = Pipeline([*steps, ("model", clone(estimator))]).fit(data.select(INPUTS).to_pandas(), y)
    classes = np.unique(y).tolist() if task == "classification" else ()
    signature = infer(data, INPUTS, task, classes)  # type: ignore[arg-type]
    return compare(pipeline, export(pipeline, signature), signature, columns_of(data, signature))


@pytest.mark.parametrize("kinds", [(0, 1), ("a", "b", "ü")], ids=["two", "three"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_agree(name: str, kinds: Any) -> None:
    found = agreement(CLASSIFIERS[name], "classification", kinds)
    assert found.disagree == 0, str(found)
    assert found.rows == ROWS + 100  # the sample, 50 rows with holes and 50 with unseen categories
    assert found.largest < 1e-9


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors_agree(name: str) -> None:
    found = agreement(REGRESSORS[name], "regression")
    assert found.disagree == 0, str(found)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_isolation_forests_agree(share: float) -> None:
    forest = IsolationForest(n_estimators=30, max_features=share, contamination=0.1, random_state=0)
    found = agreement(forest, "anomaly")
    assert found.disagree == 0, str(found)
    assert found.largest < 1e-9


@pytest.mark.parametrize("kinds", [(0, 1), (False, True), (2, 5, 9)], ids=["two", "truth", "three"])
def test_histogram_trees_split_on_sets_of_categories(kinds: Any) -> None:
    model = HistGradientBoostingClassifier(max_iter=20, categorical_features=[4, 5, 6], random_state=0)
    found = agreement(model, "classification", kinds, features(onehot=False, scale=False))
    assert found.disagree == 0, str(found)
    assert found.largest < 1e-9


def test_a_graph_that_says_something_else_is_found_out() -> None:
    data = table(ROWS)
    y = target(data, "classification")
    frame = data.select(INPUTS).to_pandas()
    pipeline = Pipeline([("features", features()), ("model", LogisticRegression())]).fit(frame, y)
    signature = infer(data, INPUTS, "classification", [0, 1])
    graph = export(pipeline, signature)
    pipeline[-1].intercept_ = pipeline[-1].intercept_ + 0.5
    found = compare(pipeline, graph, signature, columns_of(data, signature))
    assert found.disagree > ROWS * 0.9
    assert "disagree on" in str(found)
