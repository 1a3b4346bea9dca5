"""The rows that an applied version keeps: of its training table, without what is masked, and warmed up with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from modelkeep.formats import runtimes, samples
from modelkeep.lifecycle.packages import files_of
from modelkeep.registry import models
from modelkeep.serve import packages
from modelkeep.serve.packages import LocalPackages
from small import Project


def files(project: Project, version: int = 1) -> dict[str, bytes]:
    with project.opened() as keep, keep.db.read() as conn:
        return dict(files_of(keep.blobs, models.version(conn, "late", version).package))


def of_training(project: Project, rows: Mapping[str, list[Any]], names: list[str]) -> int:
    """How many of the rows stand in the project's table."""
    table = pd.read_csv(project.folder / "data" / "one.csv")
    known = set(table[names].itertuples(index=False, name=None))
    return sum(row in known for row in zip(*(rows[name] for name in names), strict=True))


def mask(*names: str) -> Any:
    return lambda said: said.update(monitor={"log": {"mask": list(names)}})


def test_a_version_keeps_rows_of_its_training_table(project: Project) -> None:
    project.apply()
    found = samples.recorded(files(project))
    assert set(found) == {"x", "z", "place"}  # what it takes: neither key nor target
    assert of_training(project, found, ["x", "z", "place"]) == samples.ROWS
    assert len(set(found["x"])) == samples.ROWS


def test_of_a_masked_column_nothing_is_kept(project: Project) -> None:
    project.apply()
    project.declare(mask("x", "place"))
    applied = project.apply()
    assert applied.version == 2  # the first holds what must not be there
    kept = files(project, 2)
    found, invented = samples.recorded(kept), samples.example(runtimes.signature(kept))
    assert found["x"] == [invented["x"]] * samples.ROWS
    assert found["place"] == [invented["place"]] * samples.ROWS
    assert of_training(project, found, ["x"]) == 0
    assert of_training(project, found, ["z"]) == samples.ROWS


def test_a_serving_process_warms_an_applied_version_with_them(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.apply()
    found = samples.recorded(files(project))
    asked: list[pd.DataFrame] = []
    load = runtimes.load

    def watched(*given: Any, **options: Any) -> Any:
        model = load(*given, **options)
        predict = model.predict

        def told(columns: Any) -> Any:
            asked.append(pd.DataFrame(dict(columns)))
            return predict(columns)

        monkeypatch.setattr(model, "predict", told)
        return model

    monkeypatch.setattr(packages.runtimes, "load", watched)
    with project.opened() as keep:
        with keep.db.read() as conn:
            digest = models.version(conn, "late", 1).package
        local = LocalPackages(tmp_path / "packages", lambda: keep.blobs)
        local.load(digest)
        local.close()
    assert [len(batch) for batch in asked] == [1, 16]
    for batch in asked:
        assert batch.to_dict("list") == {name: values[: len(batch)] for name, values in found.items()}


def test_the_same_table_gives_the_same_package(project: Project, tmp_path: Path) -> None:
    project.apply()
    other = Project(tmp_path / "other")
    other.write()
    other.declare()
    other.apply()
    assert files(project) == files(other)
    np.testing.assert_equal(samples.recorded(files(project)), samples.recorded(files(other)))
