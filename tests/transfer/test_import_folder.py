"""Importing an mlruns folder, where MLflow was used without a server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow_seed import seed
from same_mlflow import describe
from serving_mlflow import answering
from test_import_database import bring, counts

from modelkeep.core.errors import Damaged, NotFound, Refused
from modelkeep.lifecycle.keep import Keep


@pytest.fixture(scope="module")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled folder."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        seed((folder / "mlruns").as_uri(), folder / "made")
    return folder / "mlruns"


def test_everything_is_as_it_was_in_the_folder(home: Keep, mlruns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = bring(home, str(mlruns))
    assert report.checked.faults == []
    assert report.left == []
    assert report.checked.points == 1507
    assert report.checked.files == 6
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    there = describe(mlruns.as_uri())
    _written(there)
    assert report.others == {"traces": len(there.pop("traces"))} == {"traces": 1}
    with answering(home) as here:
        assert describe(here) == {**there, "traces": [], "evaluation datasets": [], "webhooks": []}
    before = counts(home)
    bring(home, mlruns.as_uri())
    assert counts(home) == {**before, "events": 2}


def _written(found: dict[str, Any]) -> None:
    """As the file has it: MLflow forgets the step of points that name a dataset when it reads them back."""
    training = next(run for run in found["experiment Fünf Flüge"]["runs"] if run["name"] == "training")
    assert training["history"]["accuracy"] == [(9, 0, 0.75)]
    training["history"]["accuracy"] = [(9, 3, 0.75)]


def test_a_folder_that_was_moved_brings_its_files(home: Keep, mlruns: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(mlruns, moved)
    for meta in moved.rglob("meta.yaml"):
        meta.write_text(meta.read_text().replace(mlruns.as_uri(), "file:///gone"))
    report = bring(home, str(moved))
    assert report.checked.faults == []
    assert report.checked.files == 6


def test_folders_of_something_else(home: Keep, tmp_path: Path, mlruns: Path) -> None:
    with pytest.raises(NotFound, match="no folder"):
        bring(home, str(tmp_path / "nowhere"))
    with pytest.raises(Refused, match="no experiments of MLflow"):
        bring(home, str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(mlruns, broken)
    metric = next(broken.rglob("metrics/odd"))
    metric.write_text("5 what 0\n")
    with pytest.raises(Damaged, match="no point of a metric"):
        bring(home, str(broken))
