"""A search gives the same trials wherever its fits are done, whoever is lost meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pyarrow as pa
import pytest
from sklearn.preprocessing import StandardScaler

from modelkeep.core.clock import SystemClock
from modelkeep.spec.declaration import Range, Train, Tune
from modelkeep.store.database import Database
from modelkeep.store.studies import Study
from modelkeep.train.fit import fit
from small import until


class Log:
    """A run log that remembers; Ctrl-C is pressed when the run of the name ``until`` is spoken of."""

    def __init__(self, name="", until="") -> None:
        self.name, self.until = name, until
        self.children: list[Log] = []
        self.said: list[object] = []

    def params(self, params):
        self.said.append(dict(params))

    def metric(self, key, value, step=0):
        if self.name == self.until:
            raise KeyboardInterrupt
        self.said.append((key, value, step))

    def child(self, name):
        self.children.append(Log(name, self.until or "none"))
        return self.children[-1]

    def end(self, status="FINISHED"):
        self.said.append(status)


def searched(algorithm, folder, log, **where):
    """The trials of a search for the depth of a tree, and the parameters it found."""
    random = np.random.default_rng(1)
    x = random.normal(size=(90, 2))
    late = x[:, 0] + random.normal(scale=0.7, size=90) > 0
    table = pa.table({"a": x[:, 0], "b": x[:, 1], "late": late})
    tune = Tune(trials=7, parallel=3, folds=2, space={"depth": Range(low=1, high=6, int=True)})
    train = Train(algorithm=algorithm, tune=tune, seed=1, params={"folder": str(folder)})
    scale = StandardScaler().fit(table.select(["a", "b"]).to_pandas())
    found = fit(train, table, "late", ["a", "b"], scale, base=folder, log=log, **where)
    return [(tried.params, tried.score, tried.note) for tried in found.tried], found.params


class JoinedSuite:
    """For engines on two machines: a fixture ``opened``, and ``another``, which starts a third one."""

    def test_a_worker_that_joins_a_search_takes_part_and_leaves_its_trial_to_others(
        self, opened, another, tmp_path
    ):
        fits = "conformance.parts:grow_when_told"
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(searched, fits, tmp_path, Log(until="none"), engine=lambda: opened)
            try:
                until(lambda: len(list(tmp_path.glob("at *"))) >= 2, limit=60)
                with another() as third:
                    joined = psutil.Process(third.pid)
                    until(
                        lambda: any(
                            (tmp_path / f"at {one.pid}").exists() for one in joined.children(recursive=True)
                        ),
                        limit=60,
                    )
            finally:
                (tmp_path / "go").touch()
            there = found.result(120)
        assert there == searched(fits, tmp_path, Log(until="none"))
        until(lambda: opened.count() == 2, limit=120)  # or what follows could be sent to the one that has gone


class SearchSuite:
    """For engines whose workers are processes of their own: a fixture ``engine``."""

    def test_a_search_there_has_the_trials_of_one_here_though_a_worker_is_lost(self, engine, tmp_path):
        def search(log, **where):
            return searched("conformance.parts:grow", tmp_path, log, **where)

        db = Database.open(f"sqlite:///{tmp_path}/modelkeep.db")
        try:
            study = Study(db, "search", SystemClock())
            with pytest.raises(KeyboardInterrupt):
                search(Log(until="trial 4"), study=study, engine=lambda: engine)
            assert study.lines(), "the first round is kept"
            logs = Log(until="none"), Log(until="none")
            there = search(logs[0], study=study, engine=lambda: engine)
        finally:
            db.close()
        assert (tmp_path / "died").exists()
        assert there == search(logs[1])
        assert any("unlucky" in note for _, _, note in there[0])
        said = [[(child.name, child.said) for child in log.children] for log in logs]
        assert said[0][3:] == said[1][3:]
        assert any(("leaves", 2.0, 1) in told for _, told in said[0])
