"""Trees of XGBoost and LightGBM, fitted data-parallel, are an estimator about as good as one fitted here."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from sklearn.metrics import log_loss, r2_score

from modelkeep.core.errors import Refused
from modelkeep.engines import boosting
from modelkeep.formats import skops_io
from modelkeep.train.algorithms import resolve
from modelkeep.train.boosting import grow

ROWS, HELD_OUT = 1500, 500


def table(task):
    random = np.random.default_rng(2)
    x = random.normal(size=(ROWS + HELD_OUT, 4))
    y = x[:, 0] + x[:, 1] * x[:, 2] + random.normal(scale=0.3, size=len(x))
    return x, np.array(["early", "late", "on time"])[
        np.digitize(y, (-0.5, 0.5))
    ] if task == "classification" else y


class BoostedSuite:
    """For engines that fit boosted trees: a fixture ``opened``, with two workers."""

    libraries: ClassVar = {"classification": ("xgboost", "lightgbm"), "regression": ("xgboost", "lightgbm")}
    """What is fitted of each task: fewer where beginning alone takes a quarter of a minute."""

    @pytest.mark.parametrize("task", ["classification", "regression"])
    def test_trees_of_divided_rows_are_as_good_as_those_of_all(self, opened, task, monkeypatch):
        shares = []
        deal = boosting.deal
        monkeypatch.setattr(boosting, "deal", lambda *given: shares.append(deal(*given)) or shares[-1])
        x, y = table(task)
        for name in self.libraries[task]:
            algorithm = resolve(name, task, base=Path())
            params = algorithm.params({"n_estimators": 15, "max_depth": 4, "n_jobs": 1}, seed=1, rows=ROWS)
            here, there = (algorithm.estimator(params, smallest_class=9) for _ in range(2))
            here.fit(x[:ROWS], y[:ROWS])
            there = grow(there, x[:ROWS], y[:ROWS], opened)
            assert [len(share) for share in shares.pop()] == [ROWS // 2, ROWS // 2]
            assert type(there) is type(here) and str(there.get_params()) == str(here.get_params())
            kept = skops_io.loads(skops_io.dumps(there))
            if task == "regression":
                scores = [r2_score(y[ROWS:], model.predict(x[ROWS:])) for model in (here, there, kept)]
            else:
                assert list(there.classes_) == ["early", "late", "on time"]
                assert set(there.predict(x[ROWS:])) == set(there.classes_)
                scores = [log_loss(y[ROWS:], model.predict_proba(x[ROWS:])) for model in (here, there, kept)]
            assert scores[1] == pytest.approx(scores[0], abs=0.05), name
            assert scores[2] == scores[1]

    def test_a_worker_with_another_version_of_the_library_is_told_before_work_starts(self, opened, monkeypatch):
        x, y = table("regression")
        for name in ("xgboost", "lightgbm"):
            monkeypatch.setattr(boosting, "version", lambda _: "99.0")
            unfitted = resolve(name, "regression", base=Path()).make()
            with pytest.raises(Refused, match=f"{name} 99.0 here and .* there"):
                grow(unfitted, x, y, opened)
