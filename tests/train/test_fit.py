"""Fitting by short name, import path and user function; tasks, targets, and errors that help."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from modelkeep.core.errors import Invalid, MissingExtra, UserCodeFailed
from modelkeep.spec.declaration import Train
from modelkeep.spec.names import ALGORITHM_TASKS
from modelkeep.stats.metrics import evaluate
from modelkeep.train.algorithms import FAMILIES, resolve
from modelkeep.train.encoding import to_frame
from modelkeep.train.fit import Fitted, fit
from modelkeep.train.predict import outputs
from modelkeep.train.task import infer, labels, truth

HERE = Path(__file__).parent
CLASSIFIERS = [name for name in FAMILIES if "classification" in FAMILIES[name].classes]
REGRESSORS = [name for name in FAMILIES if "regression" in FAMILIES[name].classes]
SMALL = {
    **{
        name: {"n_estimators": 20}
        for name in ("random_forest", "extra_trees", "gradient_boosting", "xgboost", "lightgbm")
    },
    "hist_gradient_boosting": {"max_iter": 20},
}
"""Enough trees to learn what these tests ask."""


def run(problem, **train) -> Fitted:
    base = train.pop("base", HERE)
    return fit(Train(**train), problem.table, problem.target, problem.inputs, problem.transformer, base=base)


def said(fitted: Fitted, problem):
    return outputs(fitted.pipeline, problem.table, problem.inputs, fitted.task, fitted.classes)


def test_the_short_names_are_those_of_the_declaration():
    assert {name: frozenset(family.classes) for name, family in FAMILIES.items()} == {
        name: tasks for name, tasks in ALGORITHM_TASKS.items() if name != "auto"
    }


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if n != "multinomial_naive_bayes"])
@pytest.mark.parametrize("kind", ["bool", "str", "int"])
def test_every_classifier_learns_and_keeps_the_labels_type(problem, name, kind):
    given = problem(400, target=kind)
    fitted = run(given, algorithm=name, params=SMALL.get(name, {}), task="classification")
    expected = {"bool": (False, True), "str": ("early", "late"), "int": (0, 1, 2)}[kind]
    assert fitted.classes == expected
    assert {type(value) for value in fitted.classes} == {type(expected[0])}
    answers = said(fitted, given)
    truth = given.table["y"].to_numpy()
    assert evaluate("balanced_accuracy", truth, answers) > 0.55
    assert list(fitted.pipeline.predict(given.table.select(given.inputs).to_pandas())[:5]) == list(
        answers.label[:5]
    )
    assert np.allclose(answers.probability.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", REGRESSORS)
def test_every_regressor_learns(problem, name):
    given = problem(500, target="float")
    params = {**SMALL, "gradient_boosting": {}, "lasso": {"alpha": 0.01}, "mlp": {"max_iter": 500}}
    fitted = run(given, algorithm=name, params=params.get(name, {}))
    assert fitted.task == "regression"
    assert fitted.metric == "rmse"
    assert evaluate("r2", given.table["y"].to_numpy(), said(fitted, given)) > 0.6


def test_text_stays_sparse_for_naive_bayes_and_is_made_dense_where_it_must(text):
    counting = run(text, algorithm="multinomial_naive_bayes")
    assert evaluate("accuracy", text.table["y"].to_numpy(), said(counting, text)) > 0.9
    frame = text.table.select(["text"]).to_pandas()
    assert sparse.issparse(counting.pipeline[0].transform(frame))
    dense = run(text, algorithm="gaussian_naive_bayes")
    assert isinstance(dense.pipeline[0].transform(frame), np.ndarray)
    assert sparse.issparse(text.transformer.transform(frame)), "the given transformer is left as it was"


def test_a_dense_matrix_that_does_not_fit_is_refused_with_advice(text, monkeypatch):
    monkeypatch.setattr("modelkeep.train.training.free_memory", lambda: 1000)
    with pytest.raises(Invalid, match="needs a dense matrix") as caught:
        run(text, algorithm="gaussian_naive_bayes")
    assert "multinomial_naive_bayes" in caught.value.hint


def test_isolation_forest_needs_no_target(problem):
    given = problem(300)
    far = given.table.slice(0, 3).to_pandas()
    far[["a", "b", "noise"]] = 12.0
    table = pa.concat_tables(
        [given.table, pa.Table.from_pandas(far, schema=given.table.schema, preserve_index=False)]
    )
    fitted = fit(Train(algorithm="isolation_forest"), table, "", given.inputs, given.transformer, base=HERE)
    answers = outputs(fitted.pipeline, table, given.inputs, fitted.task)
    assert fitted.task == "anomaly"
    assert answers.label[-3:].all()
    assert answers.value[-3:].min() > np.quantile(answers.value[:-3], 0.98)
    raw = fitted.pipeline.predict(table.select(given.inputs).to_pandas())
    assert ((raw == -1) == answers.label).all()


def test_equal_seeds_give_equal_models(problem):
    given = problem(400)

    def seeded(seed: int):
        fitted = run(given, algorithm="random_forest", params=SMALL["random_forest"], seed=seed)
        return said(fitted, given).probability

    one, two, other = seeded(3), seeded(3), seeded(4)
    assert (one == two).all()
    assert (one != other).any()


def test_the_fit_equals_plain_scikit_learn(problem):
    given = problem(500)
    fitted = run(given, algorithm="hist_gradient_boosting", params=SMALL["hist_gradient_boosting"])
    frame = given.table.select(given.inputs).to_pandas()
    plain = Pipeline([("features", clone(given.transformer)), ("model", clone(fitted.pipeline[-1]))])
    plain[0].sparse_threshold = 0
    plain.fit(frame, given.table["y"].to_numpy())
    assert (plain.predict_proba(frame) == said(fitted, given).probability).all()


def test_an_unknown_parameter_names_the_nearest(problem):
    with pytest.raises(Invalid) as caught:
        run(problem(), algorithm="random_forest", params={"n_estimator": 5, "zzz": 1})
    paths = {item.path: item.message for item in caught.value.problems}
    assert "did you mean 'n_estimators'?" in paths["train.params.n_estimator"]
    assert "max_depth" in paths["train.params.zzz"]


@pytest.mark.parametrize(
    ("train", "path", "words"),
    [
        ({"algorithm": "random_forrest"}, "train.algorithm", "did you mean 'random_forest'"),
        ({"algorithm": "sklearn.ensemble:Nothing"}, "train.algorithm", "has no 'Nothing'"),
        ({"algorithm": "lasso"}, "data.target", "regression needs numbers"),
        ({"algorithm": "lasso", "task": "classification"}, "train.algorithm", "the task is classification"),
        ({"algorithm": "svm", "params": {"C": -1}}, "train.params.C", "must be a float"),
        ({"algorithm": "multinomial_naive_bayes"}, "features", "does not take negative values"),
        ({"algorithm": "svm", "metric": "rmse"}, "train.metric", "rmse is for regression"),
        ({"algorithm": "svm", "metric": "roc_acu"}, "train.metric", "did you mean 'roc_auc'"),
    ],
)
def test_errors_name_the_field_and_what_is_right(problem, train, path, words):
    with pytest.raises(Invalid) as caught:
        run(problem(target="str"), **train)
    assert caught.value.problems[0].path == path
    assert words in caught.value.problems[0].message


def test_missing_values_name_their_columns(problem):
    given = problem(200)
    holes = given.table.set_column(0, "a", pa.array([None, float("nan"), *given.table["a"].to_pylist()[2:]]))
    with pytest.raises(Invalid, match=r"scale__a \(2 rows\)") as caught:
        fit(Train(algorithm="svm"), holes, "y", given.inputs, given.transformer, base=HERE)
    assert "impute" in caught.value.hint


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([True] * 9), "at least two classes"),
        (pa.array([None, *[True] * 8]), "1 of 9 rows have no target"),
        (pa.array([1.5] * 9), "always 1.5"),
        (pa.array([float("inf"), *[1.5] * 8]), "infinite"),
    ],
)
def test_targets_that_cannot_be_learnt(problem, column, words):
    given = problem(9)
    table = given.table.set_column(4, "y", column)
    with pytest.raises(Invalid, match=words) as caught:
        fit(Train(algorithm="decision_tree"), table, "y", given.inputs, given.transformer, base=HERE)
    assert caught.value.problems[0].path == "data.target"


@pytest.mark.parametrize(
    ("column", "task"),
    [
        (pa.array(["a", "b"]), "classification"),
        (pa.array(["a", "b"]).dictionary_encode(), "classification"),
        (pa.array([0.0, 1.0, 1.0]), "classification"),
        (pa.array([0.0, 1.0, 0.5]), "regression"),
        (pa.array(range(20)), "classification"),
        (pa.array(range(21)), "regression"),
    ],
)
def test_the_target_tells_the_task(column, task):
    assert infer(Train(algorithm="knn"), pa.chunked_array([column]), base=HERE) == task


def test_labels_of_several_chunks_and_unused_categories():
    chunks = pa.chunked_array([pa.array(["b", "a"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()])
    y, classes, smallest = labels(chunks)
    assert (list(y), classes, smallest) == (["b", "a", "c", "a"], ("a", "b", "c"), 1)
    unused = pa.DictionaryArray.from_arrays(pa.array([0, 2, 2]), pa.array(["x", "never", "a"]))
    assert labels(pa.chunked_array([unused]))[1:] == (("a", "x"), 1)


USER = """
import numpy as np
from sklearn.linear_model import LogisticRegression

def on_matrix(data, params, run):
    for epoch in range(params["epochs"]):
        run.log_metric("loss", 1 / (epoch + 1), epoch)
    run.log_param("optimizer.lr", params["optimizer"]["lr"])
    return LogisticRegression().fit(data.matrix, data.target)

def on_raw(data, params, run):
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    assert list(data.train.columns) == ["a", "b", "noise", "carrier"]
    raw = make_pipeline(make_column_transformer(("passthrough", ["a", "b"])), LogisticRegression())
    return raw.fit(data.train, data.target)

def broken(data, params, run):
    return data.matrix / missing_name

def nothing(data, params, run):
    return 42
"""


@pytest.fixture
def user(tmp_path):
    (tmp_path / "user_train.py").write_text(USER)
    yield tmp_path
    import sys

    sys.modules.pop("user_train", None)


class Kept:
    def __init__(self, name=""):
        self.name, self.said, self.children, self.status = name, [], [], ""

    def params(self, params):
        self.said.append(("params", dict(params)))

    def metric(self, key, value, step=0):
        self.said.append((key, value, step))

    def child(self, name):
        self.children.append(Kept(name))
        return self.children[-1]

    def end(self, status="FINISHED"):
        self.status = status


def test_a_users_function_gets_the_matrix_nested_params_and_a_run(problem, user):
    given, log = problem(), Kept()
    train = Train(algorithm="user_train:on_matrix", params={"epochs": 3, "optimizer.lr": 0.1})
    fitted = fit(train, given.table, "y", given.inputs, given.transformer, base=user, log=log)
    assert [entry for entry in log.said if entry[0] == "loss"] == [
        ("loss", 1.0, 0),
        ("loss", 0.5, 1),
        ("loss", 1 / 3, 2),
    ]
    assert ("params", {"optimizer.lr": 0.1}) in log.said
    assert evaluate("roc_auc", given.table["y"].to_numpy(), said(fitted, given)) > 0.7


def test_a_users_estimator_on_raw_inputs_stands_alone(problem, user):
    given = problem()
    fitted = run(given, algorithm="user_train:on_raw", base=user)
    assert evaluate("roc_auc", given.table["y"].to_numpy(), said(fitted, given)) > 0.7
    assert isinstance(fitted.pipeline.predict(given.table.select(given.inputs).to_pandas()), np.ndarray)


def test_a_broken_user_function_shows_its_own_traceback(problem, user):
    with pytest.raises(UserCodeFailed) as caught:
        run(problem(), algorithm="user_train:broken", base=user)
    assert "missing_name" in caught.value.traceback
    assert "user_train.py" in caught.value.traceback
    assert "modelkeep" not in caught.value.traceback
    with pytest.raises(Invalid, match="returned a int, expected an estimator"):
        run(problem(), algorithm="user_train:nothing", base=user)


def test_any_scikit_learn_class_by_path(problem):
    given = problem()
    fitted = run(given, algorithm="sklearn.ensemble.BaggingClassifier", params={"n_estimators": 5}, seed=9)
    assert fitted.task == "classification"
    assert fitted.params == {"random_state": 9, "n_estimators": 5}
    nested = run(
        given,
        algorithm="sklearn.ensemble:BaggingClassifier",
        params={"estimator": None, "n_estimators": 3},
    )
    assert evaluate("accuracy", given.table["y"].to_numpy(), said(nested, given)) > 0.7
    regressor = resolve("sklearn.linear_model:HuberRegressor", "regression", base=HERE)
    assert regressor.params({"epsilon": 2.0}, seed=1, rows=10) == {"epsilon": 2.0}


def test_frames_hold_numbers_as_they_are_served():
    numbers = [1.5, None, 2.25]
    table = pa.table(
        {
            "single": pa.array(numbers, pa.float32()),
            "decimal": pa.array([Decimal("1.5"), None, Decimal("2.25")]),
            "whole": pa.array([1, None, 2]),
            "double": pa.array([1.0, 2.0, 3.0]),
        }
    )
    frame = to_frame(table, ["double", "single", "decimal", "whole"])
    assert list(frame.columns) == ["double", "single", "decimal", "whole"]
    assert {str(kind) for kind in frame.dtypes} == {"float64"}
    assert frame["single"].tolist()[::2] == frame["decimal"].tolist()[::2] == [1.5, 2.25]
    assert np.shares_memory(frame["double"].to_numpy(), table["double"].chunk(0).to_numpy()), "not copied"


def test_truth_of_held_out_rows_may_lack_classes():
    assert truth(pa.table({"y": ["a", "a"]}), "y", "classification").tolist() == ["a", "a"]
    assert truth(pa.table({"y": [2.0, 2.0]}), "y", "regression").tolist() == [2.0, 2.0]
    assert truth(pa.table({"y": [1, 0, 1]}), "y", "anomaly").tolist() == [True, False, True]
    assert truth(pa.table({"y": [1, -1, 1]}), "y", "anomaly").tolist() == [False, True, False]
    assert truth(pa.table({"x": [1]}), "y", "anomaly") is None
    with pytest.raises(Invalid, match="marks anomalies"):
        truth(pa.table({"y": ["odd", "normal"]}), "y", "anomaly")
    with pytest.raises(Invalid, match="have no target"):
        truth(pa.table({"y": [None, "a"]}), "y", "classification")


def test_boosted_trees_have_their_parameters_checked_though_their_libraries_take_any():
    for name, near in (("xgboost", "max_depth"), ("lightgbm", "num_leaves")):
        algorithm = resolve(name, "classification", base=HERE)
        with pytest.raises(Invalid, match=f"did you mean '{near}'"):
            algorithm.params({f"{near}s": 3}, seed=1, rows=10)
        assert algorithm.params({near: 3}, seed=7, rows=10)["random_state"] == 7


def test_a_short_name_whose_library_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(MissingExtra, match="xgboost is not installed") as raised:
        resolve("xgboost", "regression", base=HERE)
    assert raised.value.hint == 'pip install "modelkeep[xgboost]"'
