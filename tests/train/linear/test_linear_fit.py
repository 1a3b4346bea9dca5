"""linear_out_of_core as users meet it: declared, streamed, stopped early, killed, packaged."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import killed_fit
import numpy as np
import pyarrow as pa
import pytest
from linear_kit import rows
from msgspec.structs import replace
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from modelkeep.core.errors import Invalid
from modelkeep.formats import skops_io
from modelkeep.registry import models, runs
from modelkeep.spec.declaration import Train
from modelkeep.train.fit import fit
from modelkeep.train.linear.entry import fit_parts
from modelkeep.train.linear.estimator import OutOfCoreClassifier, OutOfCoreRegressor
from modelkeep.train.linear.scan import Size, choose
from modelkeep.train.log import Unlogged

TRAIN = Train(algorithm="linear_out_of_core", params={"passes": 3})


class Kept(Unlogged):
    """A run that remembers."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, float, int]] = []
        self.given: dict[str, object] = {}

    def metric(self, key: str, value: float, step: int = 0) -> None:
        self.metrics.append((key, value, step))

    def params(self, params) -> None:
        self.given |= params


@parametrize_with_checks([OutOfCoreClassifier(passes=30), OutOfCoreRegressor(passes=30)])
def test_it_is_a_scikit_learn_estimator(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.mark.parametrize("kind", ["bool", "str", "int", "float"])
def test_it_trains_by_its_short_name_and_streams_metrics(problem, kind):
    given = problem(rows=300, target=kind)
    log = Kept()
    fitted = fit(TRAIN, given.table, given.target, given.inputs, given.transformer, base=Path(), log=log)
    steps = [step for key, _, step in log.metrics if key == "train_loss"]
    assert steps == [1, 2, 3]
    assert log.given["algorithm"] == "linear_out_of_core"
    frame = given.table.select(given.inputs).to_pandas()
    if kind == "float":
        assert fitted.pipeline.score(frame, given.table["y"].to_numpy()) > 0.7
    else:
        assert fitted.pipeline.score(frame, np.array(given.table["y"].to_pylist())) > 0.6


@pytest.mark.parametrize("kind", ["str", "float"])
def test_streamed_parts_give_the_model_of_the_whole_table(problem, kind):
    given = problem(rows=500, target=kind)
    train = replace(TRAIN, params={"method": "full_batch", "tolerance": 1e-7, "alpha": 1e-2})
    whole = fit(train, given.table, given.target, given.inputs, given.transformer, base=Path())
    cuts = [given.table.slice(at, 260) for at in range(0, 500, 260)]
    parts = [lambda cut=cut: iter([cut.slice(0, 90), cut.slice(90)]) for cut in cuts]
    log = Kept()
    streamed = fit_parts(train, parts, given.transformer, given.target, whole.classes, log=log)
    ours, theirs = streamed.pipeline["model"], whole.pipeline["model"]
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-5, atol=1e-6)
    assert (streamed.task, streamed.classes, streamed.metric) == (whole.task, whole.classes, whole.metric)
    assert log.metrics


def test_faults_of_parts_name_the_field(problem):
    given = problem(rows=60, target="str")
    table = given.table

    def fitted(changed: pa.Table, classes=("early", "late")):
        return fit_parts(TRAIN, [lambda: iter([changed])], given.transformer, "y", classes)

    holes = table.set_column(4, "y", pa.array([None, *table["y"].to_pylist()[1:]]))
    for changed, path, words in (
        (table.drop_columns(["y"]), "data.target", "no column 'y'"),
        (holes, "data.target", "1 of 60"),
        (table.set_column(0, "a", pa.array(np.full(60, np.nan))), "features", "missing"),
        (table.slice(0, 0), "data", "no rows"),
    ):
        with pytest.raises(Invalid, match=words) as caught:
            fitted(changed)
        assert caught.value.problems[0].path == path
    with pytest.raises(Invalid, match="not among the classes"):
        fitted(table, classes=("early", "never"))
    with pytest.raises(Invalid, match="does not learn from parts"):
        fit_parts(replace(TRAIN, algorithm="sgd"), [], given.transformer, "y", None)


def test_all_wrong_parameters_are_named_at_once(problem):
    given = problem(rows=60)
    wrong = {"loss": "hing", "penalty": "L3", "alpha": -1, "method": "sgd", "batch_size": 9, "staleness": 1.5}
    with pytest.raises(Invalid) as caught:
        fit(replace(TRAIN, params=wrong), given.table, "y", given.inputs, given.transformer, base=Path())
    assert sorted(problem.path for problem in caught.value.problems) == [
        f"train.params.{name}" for name in ("alpha", "batch_size", "loss", "penalty", "staleness")
    ]
    assert "did you mean 'hinge'" in str(caught.value)
    assert "mini_batch" in str(caught.value)


def test_steps_that_are_too_long_say_what_to_do():
    x, y = rows(0)
    with pytest.raises(Invalid, match="too long") as caught:
        OutOfCoreRegressor(step="constant", learning_rate=50.0).fit(x * 1000, y)
    assert caught.value.problems[0].path == "train.params.learning_rate"
    assert "scale" in caught.value.hint


def test_early_stopping_judges_rows_it_did_not_learn_from_and_keeps_the_best():
    x, y = rows(2)
    model = OutOfCoreClassifier(early_stopping=True, passes=60, learning_rate=2.0, random_state=1).fit(x, y)
    judged = [measured["validation_loss"] for measured in model.history_]
    assert model.n_iter_ == len(judged) < 60
    assert min(judged) < judged[-1]
    assert model.converged_


def test_a_batch_size_is_chosen_and_the_trade_off_is_kept():
    x, y = rows(2)
    log = Kept()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = OutOfCoreClassifier(method="mini_batch", batch_size="auto", passes=2).fit_watched(x, y, log)
    tried = {step for key, _, step in log.metrics if key == "batch_size_loss"}
    assert model.batch_size_ in tried
    assert {1, 8} <= tried
    assert log.given["batch_size_chosen"] == model.batch_size_
    assert "rows/s, loss" in str(log.given["batch_size_scan"])
    assert choose([Size(1, 10, 0.5), Size(8, 50, 0.4), Size(64, 90, 0.4001), Size(512, 99, 0.6)]) == 64


def test_a_killed_fit_goes_on_where_it_was_and_ends_the_same(tmp_path):
    child = subprocess.Popen([sys.executable, killed_fit.__file__, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"stopped\n"
    child.kill()
    child.wait()
    child.stdout.close()
    x, y = rows(2)
    for name in killed_fit.PARAMS:
        log = Kept()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            resumed = killed_fit.model(name).fit_watched(x, y, log, state=tmp_path / name)
            straight = killed_fit.model(name).fit(x, y)
        assert min(step for _, _, step in log.metrics) == killed_fit.STOP
        assert resumed.coef_.tolist() == straight.coef_.tolist()
        assert resumed.intercept_.tolist() == straight.intercept_.tolist()
        measured = [[entry["train_loss"] for entry in model.history_] for model in (resumed, straight)]
        assert measured[0] == measured[1]
        assert not (tmp_path / name).exists()  # nothing is left behind


def test_a_checkpoint_of_another_fit_is_not_gone_on_from(tmp_path):
    x, y = rows(2)
    (tmp_path / "linear.npz").write_bytes(b"no archive")
    log = Kept()
    OutOfCoreClassifier(passes=2).fit_watched(x, y, log, state=tmp_path)
    assert min(step for _, _, step in log.metrics) == 1


def test_apply_ends_in_a_version_served_as_a_graph(project):
    def ask(said):
        said["train"] = {
            "algorithm": "linear_out_of_core",
            "params": {"method": "local_sgd", "workers": 2, "penalty": "elastic_net", "passes": 5},
            "metric": "roc_auc",
        }

    project.write()
    project.declare(ask)
    applied = project.apply()
    with project.opened() as keep, keep.db.read() as conn:
        version = models.version(conn, "late", "champion")
        losses = runs.history(conn, version.run_id, "train_loss")
    assert applied.version == version.version == 1
    assert version.runtime == "onnx"
    values = [value for _, value, _, _ in losses]
    assert [step for _, _, _, step in losses] == list(range(1, len(losses) + 1))
    assert min(values) < values[0]


@pytest.mark.parametrize("loss", ["softmax", "hinge"])
def test_it_is_kept_without_pickle_and_without_trust(problem, loss):
    given = problem(rows=200, target="int")
    train = replace(TRAIN, params={"loss": loss, "passes": 2})
    fitted = fit(train, given.table, given.target, given.inputs, given.transformer, base=Path())
    data = skops_io.dumps(fitted.pipeline)
    assert skops_io.untrusted(data) == []
    frame = given.table.select(given.inputs).to_pandas()
    assert skops_io.loads(data).predict(frame).tolist() == fitted.pipeline.predict(frame).tolist()
    if loss == "hinge":
        with pytest.raises(AttributeError):
            fitted.pipeline.predict_proba(frame)


def test_it_clones_and_takes_sparse_rows_and_two_threads():
    x, y = rows(3)
    model = OutOfCoreClassifier(method="local_sgd", workers=2, passes=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        dense, thin = clone(model).fit(x, y), clone(model).fit(sparse.csr_matrix(x), y)
    assert dense.score(x, y) > 0.6
    np.testing.assert_allclose(dense.predict_proba(x), thin.predict_proba(sparse.csr_matrix(x)), rtol=1e-6)


def test_numba_is_imported_by_those_who_train_only():
    code = "import sys, modelkeep.train.linear.estimator; print('numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout == b"False\n"
