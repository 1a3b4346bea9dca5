"""Tuning and automatic choice: they find what is there, repeat by seed, survive a kill, say what they tried."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modelkeep.core.clock import SystemClock
from modelkeep.core.errors import Conflict, Invalid, UserCodeFailed
from modelkeep.spec.declaration import Range, Train, Tune
from modelkeep.stats.metrics import evaluate
from modelkeep.store.studies import Study, forget
from modelkeep.train.fit import fit
from modelkeep.train.predict import outputs
from modelkeep.train.splits import cross_validation, holdout, stratified_order
from modelkeep.train.task import Target
from modelkeep.train.training import Training

HERE = Path(__file__).parent


class Kept:
    def __init__(self, name=""):
        self.name, self.values, self.children, self.given, self.status = name, [], [], {}, ""

    def params(self, params):
        self.given.update(params)

    def metric(self, key, value, step=0):
        self.values.append((key, value, step))

    def child(self, name):
        self.children.append(Kept(name))
        return self.children[-1]

    def end(self, status="FINISHED"):
        self.status = status


class Watched:
    def __init__(self):
        self.steps = []

    def step(self, name, done, total=None, note=""):
        self.steps.append((name, done, total, note))


def tuned(given, tune, **keywords):
    extra = {key: keywords.pop(key) for key in ("log", "progress", "study", "engine", "base") if key in keywords}
    extra.setdefault("base", HERE)
    train = Train(**{"algorithm": "decision_tree", "tune": tune, **keywords})
    return fit(train, given.table, "y", given.inputs, given.transformer, **extra)


def test_tuning_finds_the_better_parameters_and_keeps_trials_as_child_runs(problem):
    given, log, progress = problem(900), Kept(), Watched()
    tune = Tune(trials=8, space={"max_depth": (1, 2, 4, 30)}, sampler="grid")
    fitted = tuned(given, tune, log=log, progress=progress)
    assert len(fitted.tried) == 4, "a grid ends when it is exhausted"
    best = max(fitted.tried, key=lambda tried: tried.score or 0)
    assert best.note == "chosen"
    assert fitted.params["max_depth"] == best.params["max_depth"] == 4
    assert {child.given["max_depth"] for child in log.children} == {1, 2, 4, 30}
    assert {child.status for child in log.children} == {"FINISHED"}
    assert all(len(child.values) == 3 for child in log.children), "one value per fold"
    assert progress.steps[-1][:3] == ("fit", 1, 1)
    assert "best roc_auc" in next(note for name, done, _, note in progress.steps if name == "tune" and done == 4)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_equal_seeds_search_equally(problem, sampler):
    space = {"max_depth": Range(low=1, high=12, int=True), "ccp_alpha": Range(low=1e-5, high=1e-1, log=True)}
    tune = Tune(trials=12, space=space, sampler=sampler)
    one, two = ([(t.params, t.score, t.note) for t in tuned(problem(300), tune, seed=5).tried] for _ in range(2))
    assert one == two
    assert len({tuple(params.values()) for params, _, _ in one}) > 8


def test_pruning_stops_hopeless_trials(problem):
    tune = Tune(trials=24, space={"max_depth": Range(low=1, high=10, int=True)}, sampler="random")
    fitted = tuned(problem(400), tune)
    stopped = [tried for tried in fitted.tried if tried.note == "stopped early"]
    assert stopped
    assert not any(
        tried.note == "stopped early"
        for tried in tuned(problem(400), Tune(trials=8, space=tune.space, prune=False)).tried
    )


def test_a_growing_holdout_fits_few_rows_first(problem):
    given = problem(12_000)
    tune = Tune(trials=9, space={"max_depth": (1, 2, 6)}, validation="holdout", sampler="random")
    rows = {tried.rows for tried in tuned(given, tune).tried}
    assert max(rows) == 9_600
    assert min(rows) < 4_000


def test_lists_and_a_users_nested_parameters_are_searched(problem, tmp_path):
    tune = Tune(trials=2, space={"hidden_layer_sizes": ((4,), (8, 4))}, sampler="grid")
    fitted = tuned(problem(200), tune, algorithm="mlp", params={"max_iter": 30})
    assert sorted(len(tried.params["hidden_layer_sizes"]) for tried in fitted.tried) == [1, 2]
    (tmp_path / "user_tuned.py").write_text(
        "from sklearn.linear_model import SGDClassifier\n"
        "def fit(data, params, run):\n"
        "    model, size = SGDClassifier(loss='log_loss', random_state=0), params['loader']['batch_size']\n"
        "    if size == 13: raise RuntimeError('unlucky')\n"
        "    for start in range(0, len(data.target), size):\n"
        "        rows = slice(start, start + size)\n"
        "        model.partial_fit(data.matrix[rows], data.target[rows], classes=data.classes)\n"
        "    return model\n"
    )
    space = {"loader.batch_size": (13, 16, 128)}
    found = tuned(
        problem(400), Tune(trials=3, space=space, sampler="grid"), algorithm="user_tuned:fit", base=tmp_path
    )
    failed = next(tried for tried in found.tried if tried.params["loader.batch_size"] == 13)
    assert failed.score is None
    assert "unlucky" in failed.note
    assert found.params["loader.batch_size"] in (16, 128)
    only = Tune(trials=1, space={"loader.batch_size": (13,)})
    with pytest.raises(UserCodeFailed, match="unlucky"):
        tuned(problem(400), only, algorithm="user_tuned:fit", base=tmp_path)


@pytest.mark.parametrize(
    ("tune", "path"),
    [
        (Tune(space={}), "train.tune.space"),
        (Tune(space={"max_dept": (1, 2)}), "train.tune.space.max_dept"),
        (Tune(space={"ccp_alpha": Range(low=0, high=1)}, sampler="grid"), "train.tune.space.ccp_alpha"),
        (Tune(space={"max_depth": (1, 2)}, folds=1000), "train.tune.folds"),
    ],
)
def test_a_space_that_cannot_be_searched(problem, tune, path):
    with pytest.raises(Invalid) as caught:
        tuned(problem(100), tune)
    assert caught.value.problems[0].path == path


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import flights_like, tabular
from modelkeep.core.clock import SystemClock
from modelkeep.spec.declaration import Train, Tune, Range
from modelkeep.store.database import Database
from modelkeep.store.studies import Study
from modelkeep.train.fit import fit

class Stops:  # a run log that hangs in the middle of the third round
    def __init__(self, name=""):
        self.name = name
    def params(self, params):
        pass
    def metric(self, key, value, step=0):
        if self.name == "trial 9":
            print(self.name, flush=True)
            sys.stdin.read()
    def child(self, name):
        return Stops(name)
    def end(self, status="FINISHED"):
        pass

given = tabular(flights_like(300))
depth, alpha = Range(low=1, high=12, int=True), Range(low=1e-5, high=1e-1, log=True)
tune = Tune(trials=14, space={{"max_depth": depth, "ccp_alpha": alpha}})
found = fit(Train(algorithm="decision_tree", tune=tune, seed=2), given.table, "y", given.inputs, given.transformer,
            base=Path("."), study=Study(Database.open({url!r}), "killed", SystemClock()), log=Stops())
"""


def test_a_killed_search_goes_on_where_it_stopped_and_ends_as_if_never_killed(problem, db, url):
    script = CHILD.format(tests=str(HERE), url=url)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as child:
        assert child.stdout.readline() == "trial 9\n"
        child.kill()
    space = {"max_depth": Range(low=1, high=12, int=True), "ccp_alpha": Range(low=1e-5, high=1e-1, log=True)}
    tune, progress, log = Tune(trials=14, space=space), Watched(), Kept()
    study = Study(db, "killed", SystemClock())
    resumed = tuned(problem(300), tune, seed=2, study=study, progress=progress, log=log)
    first = next(done for name, done, _, _ in progress.steps if name == "tune")
    assert first == 12, "the first two rounds were not run again"
    fresh = tuned(problem(300), tune, seed=2)
    assert [(t.params, t.score, t.note) for t in resumed.tried] == [
        (t.params, t.score, t.note) for t in fresh.tried
    ]
    assert [child.name for child in log.children] == [f"trial {slot}" for slot in range(14)]


def test_whoever_goes_on_with_a_study_second_is_told(problem, db):
    study, other = (Study(db, "shared", SystemClock()) for _ in range(2))
    tune = Tune(trials=6, parallel=2, space={"max_depth": (1, 2, 3)}, sampler="random")

    class Meanwhile(Watched):
        """When one search has had its first round, another one has all of its."""

        def step(self, name, done, total=None, note=""):
            super().step(name, done, total, note)
            if done == 2:
                self.found = tuned(problem(120), tune, study=other)

    watched = Meanwhile()
    with pytest.raises(Conflict, match="another process is tuning"):
        tuned(problem(120), tune, study=study, progress=watched)
    assert [done for name, done, _, _ in watched.steps] == [2]
    again, steps = tuned(problem(120), tune, study=study), Watched()
    assert again.tried == watched.found.tried, "nothing was lost or done twice"
    lines = study.lines()
    db.write(lambda conn: forget(conn, "shared"))
    study.append(len(lines), lines[-1:])
    assert study.lines() == [], "the end of a search is none"
    assert tuned(problem(120), tune, study=study, progress=steps).params == again.params
    assert steps.steps[0][1] == 2


def test_auto_says_what_it_tried_and_takes_the_best(problem):
    given, log, progress = problem(1500, target="float"), Kept(), Watched()
    train = Train(algorithm="auto", families=("ridge", "decision_tree", "knn"), time_budget="60s")
    fitted = fit(train, given.table, "y", given.inputs, given.transformer, base=HERE, log=log, progress=progress)
    assert {tried.algorithm for tried in fitted.tried} == {"ridge", "decision_tree", "knn"}
    chosen = next(tried for tried in fitted.tried if tried.note == "chosen")
    assert chosen.algorithm == fitted.algorithm == "ridge", "the truth is linear"
    assert chosen.low < chosen.score < chosen.high
    assert len(log.children) == len(fitted.tried)
    assert progress.steps[-1][0] == "fit"


def test_auto_goes_on_with_the_better_half_on_more_rows(problem):
    given = problem(20_000)
    families = ("logistic_regression", "decision_tree", "gaussian_naive_bayes", "sgd")
    train = Train(algorithm="auto", families=families)
    one, two = (fit(train, given.table, "y", given.inputs, given.transformer, base=HERE) for _ in range(2))
    sizes = [tried.rows for tried in one.tried]
    assert sizes == [4_000] * 4 + [16_000] * 2
    assert [(t.algorithm, t.score) for t in one.tried] == [(t.algorithm, t.score) for t in two.tried]
    assert (
        evaluate(
            "roc_auc",
            given.table["y"].to_numpy(),
            outputs(one.pipeline, given.table, given.inputs, one.task, one.classes),
        )
        > 0.8
    )


def test_auto_on_text_stays_with_sparse_families(text):
    train = Train(algorithm="auto")
    fitted = fit(train, text.table, "y", text.inputs, text.transformer, base=HERE)
    assert {tried.algorithm for tried in fitted.tried} >= {"multinomial_naive_bayes", "linear_svm"}
    assert max(tried.score for tried in fitted.tried) > 0.9


def test_auto_with_no_time_still_answers_and_says_what_was_left_out(problem):
    given = problem(1000)
    train = Train(algorithm="auto", time_budget="1ms", families=("decision_tree", "random_forest"))
    fitted = fit(train, given.table, "y", given.inputs, given.transformer, base=HERE)
    assert fitted.algorithm == "decision_tree"
    assert [tried.note for tried in fitted.tried] == ["chosen", "no time left"]


def test_auto_reports_families_that_fail(problem):
    given = problem(300)
    train = Train(algorithm="auto", families=("multinomial_naive_bayes", "decision_tree"))
    fitted = fit(train, given.table, "y", given.inputs, given.transformer, base=HERE)
    assert "negative values" in fitted.tried[0].note
    assert fitted.algorithm == "decision_tree"
    with pytest.raises(Invalid, match="chooses the parameters"):
        fit(Train(algorithm="auto", params={"C": 1}), given.table, "y", given.inputs, given.transformer, base=HERE)


def test_folds_and_prefixes_keep_the_shares_of_the_classes():
    y = np.repeat([0, 1, 2], [500, 450, 50])
    data = Training(np.arange(1000.0)[:, None], Target("classification", y, (0, 1, 2), 50), None, None)
    for fitted, held in cross_validation(data, 4, seed=1):
        assert np.abs(np.bincount(held.target) - [125, 112.5, 12.5]).max() <= 1
        assert set(fitted.matrix[:, 0]) | set(held.matrix[:, 0]) == set(range(1000))
        assert fitted.rows + held.rows == 1000
    order = stratified_order(data, seed=1)
    assert sorted(order) == list(range(1000))
    assert np.abs(np.bincount(y[order[:100]]) - [50, 45, 5]).max() <= 1
    fit_rows, held_rows = holdout(data, seed=1)
    assert not set(fit_rows) & set(held_rows)
    assert np.abs(np.bincount(y[held_rows]) - [100, 90, 10]).max() <= 1
